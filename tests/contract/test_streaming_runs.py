"""Runs whose learner begins with a group before the others of its step are there."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.data.group_sampler import GroupSampler
from astrolabe_ray.errors import LearnerLost, PayloadsLost
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.run import run_training
from astrolabe_ray.types import (
    ControllerState,
    PublishedPolicy,
    Rollout,
    RolloutRequest,
    StepResult,
    TrainBatch,
    TrainPart,
)
from tests.contract.test_controller import FakeLearner, Stage, config
from tests.resumable_run import Recorder, carry_on, left_behind, local_roles, resumable
from tests.tiny_model import write_tiny_model

NUM_GROUPS = 4


class StreamingLearner(FakeLearner):
    """Tells in which order it is called, and whether what it has is what a batch is said to be."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.log = log
        self.has: dict[str, list[int]] = {}  # group -> seeds of its samples
        self.is_working = False
        self.loses: list[str] = []  # groups whose latents can't be read, once each
        self.dies_in: list[str] = []  # groups in which a rank dies, once each
        self.taken: list[bool] = []  # by step: whether accumulated gradients were taken

    async def accumulate(self, part: TrainPart) -> None:
        assert part.step == self.version.step and not self.is_working
        self.is_working = True
        await asyncio.sleep(0.002)
        self.is_working = False
        if part.group_id in self.loses:
            self.loses.remove(part.group_id)
            raise PayloadsLost("a node died")
        if part.group_id in self.dies_in:
            self.dies_in.remove(part.group_id)
            raise LearnerLost("a rank was killed")
        assert part.group_id not in self.has
        self.log.append(f"accumulated {part.group_id}")
        self.has[part.group_id] = [s.latents for micro in part.ranks[0] for s in micro]

    async def train(self, batch: TrainBatch) -> StepResult:
        assert not self.is_working
        had, self.has = self.has, {}
        samples = [s for micro in batch.ranks[0] for s in micro]
        if batch.streamed is not None:
            assert set(batch.streamed.group_ids) == had.keys()
            assert sorted(seed for seeds in had.values() for seed in seeds) == sorted(
                s.latents for s in samples
            )
        result = await super().train(batch)
        self.taken.append(batch.streamed is not None)
        self.log.append(f"trained step {batch.step}")
        return result

    async def load(self, directory: Path) -> ControllerState:
        self.has = {}
        return await super().load(directory)


def streaming(**changes: Any) -> RunConfig:
    rollout = {"num_groups": NUM_GROUPS, "group_size": 4, "batch_size": 4}
    return config(learner={"accumulate": "streaming"}, rollout=rollout, **changes)


def staged(settings: RunConfig, checkpoints: Path = Path("checkpoints")) -> tuple[Stage, StreamingLearner]:
    """A stage whose rewards differ within groups, and whose log says when groups are made and used."""
    log: list[str] = []
    learner = StreamingLearner(log)
    stage = Stage(settings, learner=learner, checkpoints=checkpoints)
    stage.rewards.moduli = (10_007, 9_973)
    generate = stage.pool.generate

    async def logged(request: RolloutRequest, *, pinned: PublishedPolicy | None = None) -> list[Rollout]:
        made = await generate(request, pinned=pinned)
        if request.group_id.startswith("train"):
            log.append(f"made {request.group_id}")
        return made

    stage.pool.generate = logged  # type: ignore[method-assign]
    return stage, learner


def slow_groups(stage: Stage, seconds: dict[str, float]) -> None:
    generate = stage.pool.generate

    async def late(request: RolloutRequest, *, pinned: PublishedPolicy | None = None) -> list[Rollout]:
        await asyncio.sleep(seconds.get(request.group_id, 0))
        return await generate(request, pinned=pinned)

    stage.pool.generate = late  # type: ignore[method-assign]


def in_order(log: list[str], word: str) -> list[str]:
    return [line.removeprefix(f"{word} ") for line in log if line.startswith(word)]


def test_groups_are_accumulated_in_dispatch_order_before_the_last_one_is_made() -> None:
    """A stream that waits for the batch, or whose sums depend on who was quickest."""
    stage, learner = staged(streaming(num_steps=2))
    slow_groups(stage, {"train-3": 0.1, "train-1": 0.05, "train-4": 0.1})
    asyncio.run(stage.run())
    log = learner.log
    assert in_order(log, "accumulated") == [f"train-{number}" for number in range(2 * NUM_GROUPS)]
    assert log.index("made train-2") < log.index("made train-1") < log.index("accumulated train-1")
    for number in range(3):
        assert log.index(f"accumulated train-{number}") < log.index("made train-3")
    assert log.index("made train-5") < log.index("accumulated train-4") < log.index("accumulated train-5")
    assert learner.taken == [True, True]
    assert [span.detail for span in stage.notebook.spans if span.stage == "train"][:5] == [
        *({"group": number} for number in range(4)),
        {"step": 1},
    ]
    assert all(row["seconds/wait"] >= 0 and row["streaming/clipped"] == 0 for row in stage.notebook.rows)


def test_a_stream_trains_on_the_batches_of_a_run_that_waits() -> None:
    """Other samples, advantages, or another order in them."""
    stage, learner = staged(streaming())
    asyncio.run(stage.run())
    waiting, _ = staged(streaming().model_copy(update={"learner": config().learner}))
    asyncio.run(waiting.run())
    assert [batch.ranks for batch in learner.batches] == [batch.ranks for batch in waiting.learner.batches]
    assert all(batch.streamed is None for batch in waiting.learner.batches)
    assert learner.taken == [True] * 3


def test_a_dropped_group_is_never_accumulated_and_its_refill_is() -> None:
    """Gradients of a group that no batch has."""
    stage, learner = staged(streaming())
    bad = GroupSampler([f"prompt {i}" for i in range(20)], 0).prompt(1)
    stage.pool.bad_prompts = {bad}
    asyncio.run(stage.run())
    first = learner.log[: learner.log.index("trained step 0")]
    assert in_order(first, "accumulated") == ["train-0", "train-2", "train-3", "train-4"]
    assert learner.taken == [True] * 3


def test_a_group_whose_latents_are_lost_is_made_again_and_accumulated_once() -> None:
    """The first time it left nothing; those after it wait, so that the order stays."""
    stage, learner = staged(streaming())
    learner.loses = ["train-1", "train-6"]
    outcome = asyncio.run(stage.run())
    made = in_order(learner.log, "made")
    assert made.count("train-1") == made.count("train-6") == 2
    assert in_order(learner.log, "accumulated") == [f"train-{number}" for number in range(3 * NUM_GROUPS)]
    assert outcome.num_redone == 2 and learner.taken == [True] * 3


def test_a_step_whose_latents_are_lost_when_it_falls_back_is_accumulated_anew() -> None:
    """The learner forgot the groups that were not lost; and whatever was clipped stays clipped."""
    stage, learner = staged(streaming(algorithm={"adv_clip_max": 0.1}))
    learner.misses = [(0,)]
    asyncio.run(stage.run())
    first = learner.log[: learner.log.index("trained step 0")]
    assert sorted(in_order(first, "accumulated")) == sorted([f"train-{n}" for n in range(NUM_GROUPS)] * 2)
    assert learner.taken == [False] * 3
    assert all(row["streaming/clipped"] > 0 for row in stage.notebook.rows)


def test_a_learner_that_dies_in_a_group_begins_again_without_it(tmp_path: Path) -> None:
    """What the controller believes that the learner has must die with the learner."""
    stage, learner = staged(streaming(checkpoint={"every_steps": 1}), checkpoints=tmp_path)
    learner.folder = tmp_path
    learner.dies_in = ["train-6"]
    asyncio.run(stage.run())
    second = learner.log[learner.log.index("trained step 0") : learner.log.index("trained step 1")]
    assert in_order(second, "accumulated") == [f"train-{n}" for n in (4, 5, 4, 5, 6, 7)]
    assert learner.taken == [True] * 3 and learner.num_loads == 1


def test_a_stop_in_the_middle_of_a_step_saves_the_step_before() -> None:
    """A run that first waits for the groups of minutes, or a checkpoint of a step that was not taken."""
    stage, learner = staged(streaming(num_steps=50))
    slow_groups(stage, {"train-7": 3600})

    async def run() -> None:
        running = asyncio.ensure_future(stage.run())
        while "accumulated train-6" not in learner.log:
            await asyncio.sleep(0.01)
        stage.stop.set()
        await running

    asyncio.run(run())
    assert [name for name, _ in learner.saved] == ["checkpoint-1"]
    assert learner.saved[-1][1]["next_number"] == NUM_GROUPS


def test_a_failure_in_the_middle_of_a_stream_saves_the_newest_step() -> None:
    """The learner is busy with a group then, which is no reason to lose the steps before."""
    stage, learner = staged(streaming(num_steps=50))
    slow_groups(stage, {"train-7": 0.05})
    score = stage.rewards.score

    async def judge(rollouts):
        if rollouts[0].group_id == "train-7":
            raise RuntimeError("a bug in a scorer")
        return await score(rollouts)

    stage.rewards.score = judge  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug in a scorer"):
        asyncio.run(stage.run())
    assert [name for name, _ in learner.saved] == ["checkpoint-1"]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


class UnevenPool(LocalRolloutPool):
    """Groups come back in an order of its own."""

    def __init__(self, settings: RunConfig, seed: int) -> None:
        super().__init__(settings)
        self._rng = random.Random(seed)

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        made = await super().generate(request, pinned=pinned)
        await asyncio.sleep(self._rng.random() / 20)
        return made


def real(model: Path, folder: Path, accumulate: str) -> RunConfig:
    settings = resumable(model, folder, 3).model_dump()
    settings["algorithm"] |= {"kl_samples": "all", "main_reward": None}
    settings["learner"] |= {"accumulate": accumulate, "adam_eps": 1e-3}
    settings["rollout"] |= {"num_groups": 3}
    settings["evaluation"] |= {"every_steps": 0}
    return RunConfig.model_validate(settings)


def whole_run(settings: RunConfig, seed: int) -> dict[str, Any]:
    run_dir = RunDir.create(settings.logging.log_dir, settings.model.base_model, settings.name)
    roles = local_roles(settings)
    object.__setattr__(roles, "rollouts", UnevenPool(settings, seed))
    asyncio.run(run_training(settings, roles, run_dir, Recorder(run_dir), asyncio.Event()))
    return left_behind(run_dir)


def adapters(left: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        f"{file} {name}": value
        for file, content in left["weights"].items()
        for name, value in load(content).items()
        if file.startswith("adapters")
    }


def test_a_streamed_run_has_the_adapters_of_one_that_waits_whatever_the_order(
    tiny_model: Path, tmp_path: Path
) -> None:
    """With real models in one process, after updates of 1e-2; and bit for bit between streams."""
    waiting = whole_run(real(tiny_model, tmp_path / "batch", "batch"), seed=0)
    first = whole_run(real(tiny_model, tmp_path / "first", "streaming"), seed=1)
    second = whole_run(real(tiny_model, tmp_path / "second", "streaming"), seed=2)
    assert first["metrics"] == second["metrics"] and first["weights"] == second["weights"]
    assert [row["streaming/groups"] for row in first["metrics"]] == [3, 3, 3]
    got, want = adapters(first), adapters(waiting)
    assert got.keys() == want.keys()
    worst = max(np.abs(got[name] - want[name]).max() for name in want)
    moved = [np.abs(value).max() for name, value in want.items() if "lora_B" in name]
    assert worst < 5e-6 and min(moved) > 5e-5
    for row, plain in zip(first["metrics"], waiting["metrics"], strict=True):
        assert row["loss"] == pytest.approx(plain["loss"], rel=1e-4)


class Ended(Exception):
    """Stands for a process that is gone."""


@pytest.mark.slow
def test_a_streamed_run_that_was_ended_in_a_step_is_continued_bit_for_bit(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Sums of gradients are not saved: the step begins anew, and its sums must be the same."""

    class Falling(Recorder):
        def span(self, span) -> None:
            if span.detail == {"group": 4}:  # the second of the second step is accumulated
                raise Ended
            super().span(span)

    whole = left_behind(carry_on(real(tiny_model, tmp_path / "whole", "streaming")))
    broken = real(tiny_model, tmp_path / "broken", "streaming")
    with pytest.raises(Ended):
        carry_on(broken, Falling)
    got = left_behind(carry_on(broken))
    assert got["metrics"] == whole["metrics"] and got["weights"] == whole["weights"]
