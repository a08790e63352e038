"""Every preset, shrunk, through the code of a real run: the three roles in one process, without Ray."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.checkpoint_folders import what_is_wrong
from astrolabe_ray.config.loader import load, presets_in
from astrolabe_ray.config.overrides import apply_overrides
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.shrink import shrink
from astrolabe_ray.controller import RunOutcome
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.report.gallery import LocalGallery
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.run import Roles, run_training
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import Alarm, Evaluation, Span
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from reward_servers.local_pool import LocalRewardPool

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = [f"{file.name}:{name}" for file in sorted(CONFIGS.glob("*.py")) for name in presets_in(file)]
ONE_OF_EACH_KIND = [
    "nft_casual_forcing.py:casual_forcing_framewise_video_hpsv3",
    "nft_krea14b.py:krea14b_video_hpsv3",
    "nft_longlive.py:longlive_video_multi_reward_with_lora_init",
    "nft_self_forcing.py:self_forcing_video_hpsv3_1gpu",
    "nft_longlive.py:longlive_video_hpsv3_gardo",
    "nft_longlive.py:longlive_video_hpsv3_streaming_with_lora_init",
    "nft_longlive.py:longlive_video_long",
]
OVERRIDES = ["num_steps=2", "learner.num_ranks=1", "evaluation.every_steps=0", "checkpoint.every_steps=2"]


class Notes:
    """A RunObserver that remembers the steps."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def note(self, text: str) -> None: ...

    def alarmed(self, alarm: Alarm) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(dict(metrics))

    def evaluated(self, evaluation: Evaluation) -> None: ...

    def span(self, span: Span) -> None: ...


def shrunk(spec: str) -> RunConfig:
    return apply_overrides(shrink(load(f"{CONFIGS / spec}"))[0], OVERRIDES)


def carry_out(config: RunConfig, folder: Path) -> tuple[RunOutcome, Notes, RunDir]:
    run_dir, notes, blobs = RunDir.create(str(folder), "tiny", config.name), Notes(), LocalBlobStore()
    roles = Roles(
        rollouts=LocalRolloutPool(config),
        rewards=LocalRewardPool(config.rewards),
        learner=LocalLearner(LearnerSpec.of(config), blobs),
        gallery=LocalGallery(blobs),
    )

    async def run() -> RunOutcome:
        return await run_training(config, roles, run_dir, notes, asyncio.Event())

    return asyncio.run(run()), notes, run_dir


def check(spec: str, folder: Path) -> list[dict[str, float]]:
    """The metrics of its two steps."""
    config = shrunk(spec)
    outcome, notes, run_dir = carry_out(config, folder)
    assert len(notes.steps) == 2
    assert all(math.isfinite(step["loss"]) and step["grad_norm"] > 0 for step in notes.steps)
    assert [e.phase for e in outcome.evaluations] == ["before", "after"]
    assert {key for record in outcome.evaluations[0].records for key in record.scores} == {
        reward.key for reward in config.rewards
    }
    assert what_is_wrong(run_dir.checkpoints / "checkpoint-2") is None
    return notes.steps


@pytest.mark.parametrize("spec", ONE_OF_EACH_KIND)
def test_a_preset_of_each_kind_trains_two_shrunk_steps(spec: str, tmp_path: Path) -> None:
    """A preset whose options contradict what a role can do would fail on a cluster, after its queue."""
    first, second = check(spec, tmp_path)
    if "gardo" in spec:
        assert [step["kl/reference_age"] for step in (first, second)] == [0, 1]
        assert 0 < second["kl/selected"] < 0.5
        assert first["kl_loss"] == 0 < second["kl_loss"]


def test_roles_share_the_text_embeddings_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learner ranks would encode every prompt once more."""
    alone, folder = shrunk("nft_self_forcing.py:self_forcing_video_hpsv3_1gpu"), tmp_path / "texts"
    sharing = apply_overrides(alone, [f"model.prompt_cache={folder}"])
    _, want, _ = carry_out(alone, tmp_path / "alone")
    encoded: Counter[str] = Counter()
    encode = TextEncoder.encode

    def counting(self: TextEncoder, prompts: Sequence[str]) -> Tensor:
        encoded.update(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    outcome, got, _ = carry_out(sharing, tmp_path / "sharing")
    assert set(encoded.values()) == {1}
    assert [step["loss"] for step in got.steps] == [step["loss"] for step in want.steps]
    heldout = {record.prompt for record in outcome.evaluations[0].records}
    assert len(heldout) < len(encoded) == len(list(folder.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("spec", PRESETS)
def test_every_preset_trains_two_shrunk_steps(spec: str, tmp_path: Path) -> None:
    """The same, for the presets that nobody runs every day."""
    check(spec, tmp_path)
