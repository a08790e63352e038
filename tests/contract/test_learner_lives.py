"""What is left of a run when its learner dies, with fakes of the roles."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from astrolabe_ray.errors import InfraFailure, LearnerLost
from astrolabe_ray.learner_lives import MAX_DEATHS
from tests.contract.test_controller import Stage, config, counters
from tests.contract.test_last_save import breaks_at

STEPS = {
    "num_steps": 7,
    "checkpoint": {"every_steps": 2, "keep_best": False},
    "evaluation": {"num_prompts": 2, "rollouts_per_prompt": 3, "every_steps": 3},
}


def mortal(tmp_path: Path, *dies_at: int, max_policy_age: int = 0, resume_from: Path | None = None) -> Stage:
    """Saves after steps 2, 4 and 6, evaluates after 3 and 6."""
    rollout = {"num_groups": 2, "group_size": 4, "batch_size": 2, "max_policy_age": max_policy_age}
    stage = Stage(config(**STEPS, rollout=rollout), resume_from, checkpoints=tmp_path)
    stage.learner.folder, stage.learner.dies_at = tmp_path, list(dies_at)
    return stage


def ids(stage: Stage) -> list[tuple[int, list[tuple[str, int]]]]:
    """Per batch that was trained on: its step, and each rollout with its seed (which its latents are)."""
    return [
        (batch.step, sorted((s.rollout_id, int(str(s.latents))) for mb in batch.ranks[0] for s in mb))
        for batch in stage.learner.batches
    ]


def test_lost_steps_are_made_again_with_the_same_rollouts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends with one GPU of many, or trains on rollouts of a policy that is no more."""
    whole, torn = mortal(tmp_path / "whole"), mortal(tmp_path / "torn", 3, 5)
    expected = asyncio.run(whole.run())
    with caplog.at_level(logging.WARNING):
        outcome = asyncio.run(torn.run())
    by_step = ids(whole)
    assert [step for step, _ in ids(torn)] == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert ids(torn) == [by_step[step] for step, _ in ids(torn)]
    lives = [{s.policy_version for mb in batch.ranks[0] for s in mb} for batch in torn.learner.batches]
    assert [(v.incarnation, v.step) for (v,) in lives] == [
        (0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (2, 6),
    ]  # fmt: skip
    assert [e.phase for e in outcome.evaluations] == [e.phase for e in expected.evaluations]
    assert not outcome.stopped_early
    assert (
        f"the learner begins again at {tmp_path / 'torn' / 'checkpoint-2'}: a rank was killed" in caplog.text
    )


def test_rollouts_of_the_life_before_are_thrown_away(tmp_path: Path) -> None:
    """Groups in flight while the learner died would be trained on as if its lost steps had been."""
    stage = mortal(tmp_path, 3, max_policy_age=2)
    stage.learner.step_s = 0.01
    asyncio.run(stage.run())
    batches = stage.learner.batches
    assert [batch.step for batch in batches] == [0, 1, 2, 2, 3, 4, 5, 6]
    for number, batch in enumerate(batches):
        lives = {s.policy_version.incarnation for mb in batch.ranks[0] for s in mb}
        assert lives == {0 if number < 3 else 1}


def test_rollouts_of_lost_steps_are_not_counted(tmp_path: Path) -> None:
    """Rollouts per second and ages in the summary would be of work that was thrown away, or only of the
    last life: of nine batches here the third and the sixth are lost."""
    outcome = asyncio.run(mortal(tmp_path, 3, 5).run())
    assert (outcome.num_rollouts, outcome.policy_ages) == (7 * 8, {0: 7 * 8})


@pytest.mark.parametrize(
    ("state", "before"), [(counters(next_number=4), 2 * 8), ({"first_release_step": 2}, 0)], ids=str
)
def test_a_resumed_run_counts_its_own_rollouts_once(
    tmp_path: Path, state: dict[str, object], before: int
) -> None:
    """Begun again where it was resumed, a run would count a step twice: a checkpoint of the first release
    says nothing of what was trained on."""
    stage = mortal(tmp_path, 3, resume_from=Path("elsewhere/checkpoint-2"))
    stage.learner.resume_state = state
    outcome = asyncio.run(stage.run())
    assert [batch.step for batch in stage.learner.batches] == [2, 2, 3, 4, 5, 6]
    assert (outcome.num_rollouts, outcome.policy_ages) == (5 * 8, {0: before + 5 * 8})


def test_a_failure_outside_the_learner_after_its_rebirth_loses_no_trained_step(tmp_path: Path) -> None:
    """A learner that died once would count as unsound for good, and its steps since would go unsaved."""
    stage = mortal(tmp_path, 3)
    breaks_at(stage, 5)
    with pytest.raises(InfraFailure, match="no reward server answers"):
        asyncio.run(stage.run())
    assert [name for name, _ in stage.learner.saved] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert stage.learner.saved[-1][1]["next_number"] == 10
    assert stage.learner.saved[-1][1]["ages_trained"] == {"0": 5 * 8}
    assert stage.notebook.notes[-1] == "saved checkpoint-5 after the failure"


def test_without_a_checkpoint_the_run_ends_with_the_cause(tmp_path: Path) -> None:
    """There is nothing to begin again from."""
    stage = mortal(tmp_path, 1)
    with pytest.raises(LearnerLost, match="a rank was killed"):
        asyncio.run(stage.run())


def test_a_learner_that_dies_at_the_same_place_again_and_again_ends_the_run(tmp_path: Path) -> None:
    """Hours of a whole cluster for a fault that no new life mends."""
    stage = mortal(tmp_path, *[3] * 10)
    with pytest.raises(LearnerLost, match="a rank was killed"):
        asyncio.run(stage.run())
    assert stage.learner.num_loads == MAX_DEATHS


def test_a_stop_while_the_learner_begins_again_ends_the_run_in_order(tmp_path: Path) -> None:
    """`ray job stop` would wait for models to load that nobody needs."""
    stage = mortal(tmp_path, 3)

    async def run() -> bool:
        running = asyncio.ensure_future(stage.run())
        while stage.learner.dies_at:
            stage.learner.start_s = 3600 if stage.learner.version.step > 1 else 0
            await asyncio.sleep(0.001)
        stage.stop.set()
        return (await running).stopped_early

    assert asyncio.run(run())
