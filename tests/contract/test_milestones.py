"""Evaluation beside training, and which checkpoints stay; between fakes of the roles."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from astrolabe_ray.errors import DataFailure, WeightMismatch
from astrolabe_ray.report.summary import summarise
from astrolabe_ray.types import ControllerState, PublishedPolicy, Rollout, RolloutRequest, Scores
from tests.contract.test_controller import FakeLearner, Stage, config

EVALUATION = {"num_prompts": 2, "rollouts_per_prompt": 2, "num_shown_videos": 0}


def test_training_goes_on_while_a_policy_is_evaluated() -> None:
    """The learner stood still for every evaluation, minutes on a real model."""
    stage = Stage(config(num_steps=6, evaluation=EVALUATION | {"every_steps": 2}))
    generate = stage.pool.generate
    steps_at_request: dict[str, int] = {}
    of_training = asyncio.Event()

    async def slow_evaluation(
        request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        if request.group_id.startswith("eval-step-2"):
            await asyncio.wait_for(of_training.wait(), 10)  # training must get to step 4 without it
            steps_at_request[request.group_id] = stage.learner.version.step
        return await generate(request, pinned=pinned)

    stage.pool.generate = slow_evaluation  # type: ignore[method-assign]
    stage.notebook.on_step = lambda: of_training.set() if stage.learner.version.step == 4 else None
    outcome = asyncio.run(stage.run())
    assert set(steps_at_request.values()) == {4}
    assert [(e.phase, e.version.step) for e in outcome.evaluations] == [
        ("before", 0),
        ("step-2", 2),
        ("step-4", 4),
        ("after", 6),
    ]
    samples = [[s for mb in batch.ranks[0] for s in mb] for batch in stage.learner.batches]
    assert [{s.policy_version.step for s in batch} for batch in samples] == [{n} for n in range(6)]


def test_a_held_out_video_of_another_policy_ends_the_run() -> None:
    """Results would be told of a policy that did not make them."""
    stage = Stage(config(num_steps=4, evaluation=EVALUATION | {"every_steps": 1}))
    generate = stage.pool.generate

    async def careless(request: RolloutRequest, *, pinned: PublishedPolicy | None = None) -> list[Rollout]:
        while request.group_id.startswith("eval-step-1") and stage.learner.version.step < 2:
            await asyncio.sleep(0.001)
        return await generate(request)

    stage.pool.generate = careless  # type: ignore[method-assign]
    with pytest.raises(WeightMismatch, match=r"policy 0\.1 is evaluated, but .* was made by 0\.2"):
        asyncio.run(stage.run())


class WritingLearner(FakeLearner):
    """Leaves folders."""

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        directory.mkdir(parents=True)


@pytest.mark.parametrize(("keep_best", "kept"), [(True, [2, 6, 7]), (False, [6, 7])])
def test_the_checkpoint_of_the_best_held_out_reward_stays(
    tmp_path: Path, keep_best: bool, kept: list[int]
) -> None:
    """A policy that went down again could not be taken back to where it was best."""
    settings = config(
        num_steps=7,
        evaluation=EVALUATION | {"every_steps": 1},
        checkpoint={"every_steps": 1, "keep_last": 2, "keep_best": keep_best},
    )
    stage = Stage(settings, learner=WritingLearner(), checkpoints=tmp_path)
    rewards = {"before": 9.0, "step-1": 1.0, "step-2": 5.0, "after": 2.0}

    async def score(rollouts: Sequence[Rollout]) -> list[Scores]:
        phase = rollouts[0].group_id.removeprefix("eval-").rpartition("-")[0]
        return [Scores({"fun": rewards.get(phase, 0.0) + 0.1 * r.index, "calm": 1.0}) for r in rollouts]

    stage.rewards.score = score  # type: ignore[method-assign]
    asyncio.run(stage.run())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in kept]


@pytest.mark.parametrize(("stop_on", "steps"), [((), 12), (("zero_groups",), 3)])
def test_a_guard_of_stop_on_ends_the_run_after_a_save(stop_on: tuple[str, ...], steps: int) -> None:
    """A scorer that broke gives equal rewards: a night of training on nothing."""
    health = {"patience_steps": 3, "min_pull": None, "stop_on": stop_on}
    stage = Stage(config(num_steps=12, health=health, evaluation=EVALUATION))
    stage.rewards.moduli = (1, 1)
    outcome = asyncio.run(stage.run())
    assert len(stage.learner.batches) == steps
    assert stage.learner.saved[-1][0] == f"checkpoint-{steps}"
    assert outcome.stopped_by == (stop_on[0] if stop_on else None)
    assert outcome.stopped_early == bool(stop_on)
    (alarm,) = outcome.alarms
    assert stage.notebook.alarms == [alarm]
    assert (alarm.guard, alarm.step, alarm.value, alarm.stops) == ("zero_groups", 3, 1.0, bool(stop_on))
    assert [row["health/alarms"] for row in stage.notebook.rows] == [0.0, 0.0] + [1.0] * (steps - 2)


def test_an_evaluation_that_a_resume_cut_off_is_made_up_for() -> None:
    """The curve of held-out rewards would have a hole, or worse, another policy in its place."""
    settings = config(num_steps=6, evaluation=EVALUATION | {"every_steps": 2})
    whole = asyncio.run(Stage(settings).run()).evaluations
    resumed = Stage(settings, resume_from=Path("checkpoint-4"))
    resumed.controller.milestones.evaluations = whole[:1]
    outcome = asyncio.run(resumed.run())
    assert [e.phase for e in outcome.evaluations] == ["before", "step-4", "after"]
    assert [(e.version.step, e.records) for e in outcome.evaluations[1:]] == [
        (e.version.step, e.records) for e in whole[2:]
    ]
    assert resumed.notebook.notes == ["evaluations of steps [2] were not finished; their policies are gone"]


def test_a_stop_between_a_save_and_its_evaluation_costs_no_evaluation() -> None:
    """The best policy may have been the one that was saved last."""
    settings = config(num_steps=4, evaluation=EVALUATION | {"every_steps": 2})
    first = Stage(settings)
    first.notebook.on_step = lambda: first.stop.set() if first.learner.version.step == 2 else None
    outcome = asyncio.run(first.run())
    assert [e.phase for e in outcome.evaluations] == ["before"]
    assert [name for name, _ in first.learner.saved] == ["checkpoint-2"]
    resumed = Stage(settings, resume_from=Path("checkpoint-2"))
    resumed.learner.resume_state = first.learner.saved[0][1]
    resumed.controller.milestones.evaluations = outcome.evaluations
    phases = [(e.phase, e.version.step) for e in asyncio.run(resumed.run()).evaluations]
    assert phases == [("before", 0), ("step-2", 2), ("after", 4)]


def test_a_run_that_was_stopped_before_its_first_step_is_not_evaluated_twice() -> None:
    """Minutes for numbers that are known, and two first points in every curve."""
    first = Stage(config())
    generate = first.pool.generate

    async def stop_then(request: RolloutRequest, *, pinned: PublishedPolicy | None = None) -> list[Rollout]:
        if request.group_id.startswith("train"):
            first.stop.set()
        return await generate(request, pinned=pinned)

    first.pool.generate = stop_then  # type: ignore[method-assign]
    outcome = asyncio.run(first.run())
    assert [name for name, _ in first.learner.saved] == ["checkpoint-0"]
    resumed = Stage(config(), resume_from=Path("checkpoint-0"))
    resumed.controller.milestones.evaluations = list(outcome.evaluations)
    assert [e.phase for e in asyncio.run(resumed.run()).evaluations] == ["before", "after"]
    assert not any(request.group_id.startswith("eval-before") for request in resumed.pool.requests)


def unscorable(stage: Stage, groups: set[str]) -> None:
    """Scores of these groups are not finite."""
    score = stage.rewards.score

    async def not_finite(rollouts: Sequence[Rollout]) -> list[Scores]:
        if rollouts[0].group_id in groups:
            raise DataFailure("score 'fun' is nan")
        return await score(rollouts)

    stage.rewards.score = not_finite  # type: ignore[method-assign]


def test_a_held_out_prompt_that_cannot_be_scored_is_left_out_and_named() -> None:
    """One number that was not finite ended a run of days; a zero in its place would be an effect."""
    settings = config(num_steps=4, evaluation=EVALUATION | {"every_steps": 2})
    whole, hit = Stage(settings), Stage(settings)
    unscorable(hit, {"eval-step-2-1"})
    expected, outcome = asyncio.run(whole.run()).evaluations, asyncio.run(hit.run())
    before, middle, after = outcome.evaluations
    assert [(e.phase, e.left_out) for e in outcome.evaluations] == [
        ("before", ()),
        ("step-2", (1,)),
        ("after", ()),
    ]
    assert (before, after) == (expected[0], expected[2])
    assert middle.records == expected[1].records[:2]
    assert hit.notebook.notes == [
        "held-out prompt 'held out b' is left out of evaluation step-2: score 'fun' is nan"
    ]
    assert hit.controller.evaluator.is_comparable(middle)
    assert not hit.controller.evaluator.is_comparable(replace(middle, left_out=(0,)))
    summary = summarise(outcome)
    assert [e["heldout"]["total"]["num_videos"] for e in summary["evaluations"]] == [2, 4]
    assert summary["left_out"] == {"before": 0, "step-2": 1, "after": 0}


def test_an_evaluation_that_loses_more_than_half_of_its_prompts_ends_the_run() -> None:
    """A scorer that broke: the rest would be taken for the whole."""
    stage = Stage(config(num_steps=4, evaluation=EVALUATION | {"every_steps": 2}))
    unscorable(stage, {"eval-step-2-0", "eval-step-2-1"})
    with pytest.raises(DataFailure, match=r"step-2 had to leave out 2 of 2 .* score 'fun' is nan"):
        asyncio.run(stage.run())
    assert stage.learner.saved[-1][0] == f"checkpoint-{stage.learner.version.step}"
