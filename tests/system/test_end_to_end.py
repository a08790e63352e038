"""Whole runs on a real two-node cluster: two learner ranks, two rollout actors, two reward servers."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import serve
from ray.cluster_utils import Cluster
from safetensors.torch import load_file

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.schema import (
    AlgorithmConfig,
    EvaluationConfig,
    LearnerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from astrolabe_ray.controller import RunOutcome
from astrolabe_ray.metrics.names import metric
from astrolabe_ray.report.gallery import LocalGallery
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.run import Roles, run_training
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import Alarm, Evaluation, Span
from launch import make_roles
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from reward_servers.local_pool import LocalRewardPool
from tests.reward_replicas import replica_pids

pytestmark = pytest.mark.system
REWARDS = tuple(RewardConfig(key=key, num_cpus=0.1) for key in ("tiny_clip", "image_quality"))


class Notes:
    """A RunObserver that remembers."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.spans: list[Span] = []

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def note(self, text: str) -> None: ...

    def alarmed(self, alarm: Alarm) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(dict(metrics))

    def evaluated(self, evaluation: Evaluation) -> None: ...

    def span(self, span: Span) -> None:
        self.spans.append(span)


def tiny_run(*, num_ranks: int, num_actors: int, max_policy_age: int, num_steps: int = 3) -> RunConfig:
    """adam_eps is large, so that Adam does not blow rounding of tiny gradients up to whole steps."""
    return RunConfig(
        name="whole",
        num_steps=num_steps,
        rollout=RolloutConfig(
            num_groups=2,
            group_size=4,
            batch_size=2,
            min_actors=num_actors,
            max_actors=num_actors,
            max_policy_age=max_policy_age,
            num_cpus=0.8,
        ),
        rewards=REWARDS,
        algorithm=AlgorithmConfig(timesteps_per_sample=2, kl_coef=0.01),
        learner=LearnerConfig(num_ranks=num_ranks, num_cpus=0.6, lr=1e-2, adam_eps=1e-4, micro_batch_size=2),
        evaluation=EvaluationConfig(num_prompts=2, rollouts_per_prompt=2, num_shown_videos=1),
    )


def carry_out(
    config: RunConfig, roles: Roles, folder: Path, notes: Notes | None = None
) -> tuple[RunOutcome, Notes, RunDir]:
    run_dir, notes = RunDir.create(str(folder), "tiny", config.name), notes or Notes()

    async def run() -> RunOutcome:
        return await run_training(config, roles, run_dir, notes, asyncio.Event())

    return asyncio.run(run()), notes, run_dir


def local_roles(config: RunConfig) -> Roles:
    blobs = LocalBlobStore()
    return Roles(
        rollouts=LocalRolloutPool(config),
        rewards=LocalRewardPool(config.rewards),
        learner=LocalLearner(LearnerSpec.of(config), blobs),
        gallery=LocalGallery(blobs),
    )


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    """Neither node has room for all roles."""
    cluster = Cluster()
    for number in range(2):
        cluster.add_node(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False)
        if number == 0:
            ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


Distributed = tuple[RunConfig, RunOutcome, Notes, RunDir]


@pytest.fixture(scope="module")
def synchronous(two_nodes: None, tmp_path_factory: pytest.TempPathFactory) -> Distributed:
    config = tiny_run(num_ranks=2, num_actors=2, max_policy_age=0)
    return config, *carry_out(config, make_roles(config), tmp_path_factory.mktemp("distributed"))


def test_the_distributed_run_equals_the_loop_in_one_process(synchronous: Distributed, tmp_path: Path) -> None:
    """Lost, doubled or stale samples, wrong shares of ranks or wrong means change the weights."""
    config, distributed, _, run_dir = synchronous
    equals_the_loop_in_one_process(config, distributed, run_dir, tmp_path)


@pytest.mark.slow
def test_a_distributed_run_on_clips_of_one_history_equals_the_loop_in_one_process(
    two_nodes: None, tmp_path: Path
) -> None:
    """A prefix that is joined to another group's clips, or that does not survive its actor's task."""
    config = clip_run(num_ranks=2, num_actors=2, num_steps=2)
    distributed, notes, run_dir = carry_out(config, make_roles(config), tmp_path / "distributed")
    rollouts = [span for span in notes.spans if span.stage == "rollout"]
    assert len(rollouts) == 2 * 2, "a group is one request, so that its history is made once"
    equals_the_loop_in_one_process(config, distributed, run_dir, tmp_path / "local")


def clip_run(*, num_ranks: int, num_actors: int, num_steps: int) -> RunConfig:
    """Windows of a chunk at the end of videos of three, whose first two a group makes once."""
    config = tiny_run(num_ranks=num_ranks, num_actors=num_actors, max_policy_age=0, num_steps=num_steps)
    rollout = config.rollout.model_copy(update={"group_sampling": "clip"})
    algorithm = config.algorithm.model_copy(update={"train_window_frames": 3})
    return config.model_copy(update={"rollout": rollout, "algorithm": algorithm})


def equals_the_loop_in_one_process(
    config: RunConfig, distributed: RunOutcome, run_dir: RunDir, folder: Path
) -> None:
    """Both runs see the same seeds and noise. They may differ by the order of float32 sums: two ranks add
    halves of the batch, and servers group videos differently. Adam turns relative errors of gradients
    into the same relative errors of updates. Weights agreed to 0.4 % of how far they moved; 1 % is allowed.
    """
    torch.set_num_threads(1)
    alone = config.model_copy(update={"learner": config.learner.model_copy(update={"num_ranks": 1})})
    local, _, local_dir = carry_out(alone, local_roles(alone), folder)
    for name in ("default", "old", "ema"):
        got, want = (adapter(folder, name) for folder in (run_dir, local_dir))
        assert got.keys() == want.keys()
        moved = max(float(want[key].abs().max()) for key in want if key.endswith("lora_B"))
        assert moved > 1e-3, "lora_B starts at zero; a run that trained nothing proves nothing"
        assert all(torch.allclose(got[key], want[key], rtol=0, atol=0.01 * moved) for key in want), name
    for evaluation, tolerance in ((0, 1e-4), (1, 1e-2)):  # the same policy, then the two trained ones
        here, there = (outcome.evaluations[evaluation] for outcome in (distributed, local))
        assert [r.total for r in here.records] == pytest.approx(
            [r.total for r in there.records], abs=tolerance
        )
        assert here.diversity == pytest.approx(there.diversity, abs=tolerance)


def adapter(run_dir: RunDir, name: str) -> dict[str, Any]:
    return load_file(max(run_dir.checkpoints.glob("checkpoint-*")) / "adapters" / f"{name}.safetensors")


def test_every_rollout_of_a_synchronous_run_is_on_policy(synchronous: Distributed) -> None:
    """A rollout actor that misses a version trains on data of the wrong policy."""
    _, outcome, notes, _ = synchronous
    assert outcome.policy_ages == {0: 3 * 8}
    actors = {span.who for span in notes.spans if span.stage == "rollout"}
    assert len(actors) == 2, "both actors must work"


def test_every_number_of_a_step_is_declared_and_finite(synchronous: Distributed) -> None:
    """A column of metrics.jsonl that nobody can explain a month later."""
    _, _, notes, _ = synchronous
    assert all(metric(name) is not None and math.isfinite(row[name]) for row in notes.steps for name in row)


def test_a_second_run_reuses_the_servers_and_never_exceeds_the_policy_age(
    synchronous: Distributed, tmp_path: Path
) -> None:
    """Reloading reward models costs minutes on real ones; too stale rollouts bias the update."""
    before = replica_pids()
    config = tiny_run(num_ranks=2, num_actors=2, max_policy_age=2, num_steps=6)
    outcome, notes, _ = carry_out(config, make_roles(config), tmp_path)
    assert len(before) == 2
    assert replica_pids() == before
    assert sum(outcome.policy_ages.values()) == 6 * 8
    assert set(outcome.policy_ages) <= {0, 1, 2}
    assert max(outcome.policy_ages) > 0, "with room for three steps in flight, some rollouts are older"
    assert [row["step"] for row in notes.steps] == [1, 2, 3, 4, 5, 6]
    videos = [record.video for evaluation in outcome.evaluations for record in evaluation.records]
    assert [video[4:8] for video in videos if video is not None] == [b"ftyp", b"ftyp"]


class Murderer(Notes):
    """Kills the second learner rank when the second step has been told of."""

    def __init__(self, learner: Any) -> None:
        super().__init__()
        self.learner, self.victim = learner, 0

    def step(self, metrics: Mapping[str, float]) -> None:
        super().step(metrics)
        if not self.victim and metrics["step"] == 2:
            rank = self.learner._ranks[1]
            self.victim = ray.get(rank.__ray_call__.remote(lambda _: os.getpid()), timeout=60)
            os.kill(self.victim, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_learner_rank_costs_the_steps_since_the_checkpoint_and_nothing_else(
    synchronous: Distributed, tmp_path: Path
) -> None:
    """A run of days ends at night with one GPU of many; or goes on with other weights than a whole run."""
    config, _, _, whole_dir = synchronous
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 1})})
    roles = make_roles(config)
    notes = Murderer(roles.learner)
    outcome, _, run_dir = carry_out(config, roles, tmp_path, notes)
    assert notes.victim
    assert [row["step"] for row in notes.steps] == [1, 2, 2, 3], "checkpoint-2 was not written yet"
    assert not outcome.stopped_early
    assert len({span.who for span in notes.spans if span.stage == "rollout"}) == 2, "the same two actors"
    got, want = (adapter(folder, "default") for folder in (run_dir, whole_dir))
    moved = max(float(want[key].abs().max()) for key in want if key.endswith("lora_B"))
    assert all(torch.allclose(got[key], want[key], rtol=0, atol=0.01 * moved) for key in want)
