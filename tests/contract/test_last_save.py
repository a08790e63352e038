"""What a run saves when something else than the learner fails; between fakes of the roles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from astrolabe_ray.errors import InfraFailure, RunStalled
from astrolabe_ray.types import ControllerState, PublishedPolicy, Rollout, Scores, StepResult, TrainBatch
from tests.contract.test_controller import FakeLearner, Stage, config, counters

RARE = {"every_steps": 100}
LIMIT = {"step_timeout_s": 0.5}


def stage_of(who: FakeLearner, **changes: object) -> Stage:
    return Stage(config(**({"num_steps": 6, "checkpoint": RARE} | changes)), learner=who)


def breaks_at(stage: Stage, step: int) -> None:
    """Scoring fails for good once `step` steps are published."""
    score = stage.rewards.score

    async def fail_late(rollouts: Sequence[Rollout]) -> list[Scores]:
        if rollouts[0].policy_version.step == step and rollouts[0].group_id.startswith("train"):
            raise InfraFailure("no reward server answers")
        return await score(rollouts)

    stage.rewards.score = fail_late  # type: ignore[method-assign]


def test_a_failure_outside_the_learner_loses_no_trained_step() -> None:
    """Reward servers that gave up cost every step since the last checkpoint, with a healthy learner."""
    stage = stage_of(FakeLearner())
    breaks_at(stage, 3)
    with pytest.raises(InfraFailure, match="no reward server answers"):
        asyncio.run(stage.run())
    (saved,) = stage.learner.saved
    assert saved == ("checkpoint-3", counters(next_number=6))
    assert stage.notebook.notes == ["saved checkpoint-3 after the failure"]


def test_the_step_under_way_is_finished_booked_and_saved() -> None:
    """A save in the middle of a step would be of weights and counters that do not belong together."""
    learner = FakeLearner()
    learner.step_s = 0.05
    rollout = {"num_groups": 2, "group_size": 4, "batch_size": 4, "max_policy_age": 1}
    stage = stage_of(learner, rollout=rollout)
    breaks_at(stage, 1)  # while the second step is trained, on groups of policy 0
    with pytest.raises(InfraFailure, match="no reward server answers"):
        asyncio.run(stage.run())
    assert len(learner.batches) == 2
    assert [name for name, _ in learner.saved] == ["checkpoint-2"]
    assert learner.saved[0][1]["next_number"] == 4


def test_a_step_that_could_not_be_published_is_saved_as_trained() -> None:
    """The learner was a step ahead of the counters: its groups would be trained on twice."""
    stage = stage_of(FakeLearner())
    set_policy = stage.pool.set_policy

    async def refuse(policy: PublishedPolicy) -> None:
        if policy.manifest.version.step == 2:
            raise InfraFailure("no actor takes weights")
        await set_policy(policy)

    stage.pool.set_policy = refuse  # type: ignore[method-assign]
    with pytest.raises(InfraFailure, match="no actor takes weights"):
        asyncio.run(stage.run())
    ((name, state),) = stage.learner.saved
    assert (name, state["next_number"], state["ages_trained"]) == ("checkpoint-2", 4, {"0": 16})
    assert [row["step"] for row in stage.notebook.rows] == [1, 2]  # or a resumed run has a gap in its curves


def test_nothing_is_saved_twice_and_nothing_before_the_first_step() -> None:
    """A broken start left a checkpoint-0 that the next run would continue from."""
    for every, breaks, saved in ((2, 0, []), (2, 2, ["checkpoint-2"])):
        stage = stage_of(FakeLearner(), checkpoint={"every_steps": every})
        breaks_at(stage, breaks)
        with pytest.raises(InfraFailure, match="no reward server answers"):
            asyncio.run(stage.run())
        assert [name for name, _ in stage.learner.saved] == saved
        assert stage.notebook.notes == ["no step was lost"]


def test_an_evaluation_that_fails_loses_no_trained_step() -> None:
    """A gallery that gave no answer ended the run with the steps since the checkpoint."""
    evaluation = {"num_prompts": 2, "rollouts_per_prompt": 3, "every_steps": 3}
    stage = stage_of(FakeLearner(), evaluation=evaluation, checkpoint=RARE | {"keep_best": False})
    diversity = stage.controller.evaluator.gallery.diversity

    async def fail_late(videos: Sequence[object]) -> float:
        if stage.learner.version.step > 0:
            raise InfraFailure("looking at videos took too long")
        return await diversity(videos)

    stage.controller.evaluator.gallery.diversity = fail_late  # type: ignore[method-assign]
    with pytest.raises(InfraFailure, match="looking at videos"):
        asyncio.run(stage.run())
    assert stage.learner.saved[-1][0] == f"checkpoint-{stage.learner.version.step}"
    assert stage.learner.version.step >= 3


class BrokenLearner(FakeLearner):
    """Fails, hangs or cannot save at its third step."""

    def __init__(self, how: Literal["train", "hang", "save", "slow save"]) -> None:
        super().__init__()
        self.how = how

    async def train(self, batch: TrainBatch) -> StepResult:
        if self.version.step == 2 and self.how == "train":
            raise InfraFailure("a learner rank died")
        if self.version.step == 2 and self.how == "hang":
            await asyncio.sleep(3600)
        return await super().train(batch)

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        if self.how == "save":
            raise OSError("disk full")
        await asyncio.sleep(3600 if self.how == "slow save" else 0)
        await super().save(directory, controller_state)


@pytest.mark.parametrize(
    ("how", "cause", "note"),
    [
        ("train", "a learner rank died", "the learner failed or gave no answer"),
        ("hang", "no reward server answers", "the learner failed or gave no answer"),
        ("save", "no reward server answers", "the save after the failure failed, too: disk full"),
        ("slow save", "no reward server answers", "took more than 0.5 s"),
    ],
)
def test_the_cause_is_told_whatever_the_save_does(
    how: Literal["train", "hang", "save", "slow save"], cause: str, note: str
) -> None:
    """An error or a hang in the last save would hide why the run ended, or keep it from ending."""
    age = 1 if how == "hang" else 0
    rollout = {"num_groups": 2, "group_size": 4, "batch_size": 4, "max_policy_age": age}
    stage = stage_of(BrokenLearner(how), rollout=rollout, learner=LIMIT)
    stage.learner.step_s = 0.06  # longer than it takes to make a group
    if how != "train":
        breaks_at(stage, 2)
    with pytest.raises(InfraFailure, match=cause):
        asyncio.run(stage.run())
    assert stage.learner.saved == []
    assert len(stage.notebook.notes) == 1 and note in stage.notebook.notes[0]


def test_a_run_that_the_learner_keeps_from_moving_is_not_kept_waiting_for_it() -> None:
    """Twice the longest wait, before anybody is told that the run stands still."""
    stage = stage_of(BrokenLearner("hang"), cluster={"stall_timeout_s": 0.3})
    with pytest.raises(RunStalled):
        asyncio.run(stage.run())
    assert stage.notebook.notes == ["the learner is what stands still: nothing was saved after the failure"]
