"""What a step hands to the learner, with everything that one step leaves to the next."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from astrolabe_ray.config.schema import AlgorithmConfig, RewardConfig, RunConfig
from astrolabe_ray.step_batch import StepBatches
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores, TrainBatch

STD = 1e-4  # added to every std


def config(**algorithm: object) -> RunConfig:
    return RunConfig(name="run", rewards=(RewardConfig(key="a"),), algorithm=AlgorithmConfig(**algorithm))


def group(number: int, prompt: str, rewards: Sequence[float]) -> RolloutGroup:
    name = f"g{number}"
    rollouts = tuple(
        Rollout(name, i, prompt, i, PolicyVersion(), "actor", None, ()) for i in range(len(rewards))
    )
    return RolloutGroup(name, number, prompt, rollouts, tuple(Scores({"a": reward}) for reward in rewards))


def advantages(batch: TrainBatch) -> dict[str, float]:
    return {s.rollout_id: s.advantage for rank in batch.ranks for micro in rank for s in micro}


def test_groups_of_one_prompt_share_their_mean_when_asked() -> None:
    """Two groups of one prompt: (1, 3) and (5, 7) have the common mean 4; the std of all is sqrt(5)."""
    groups = [group(0, "p", [1.0, 3.0]), group(1, "p", [5.0, 7.0])]
    own = advantages(StepBatches(config()).make(groups, 0).batch)
    common = advantages(StepBatches(config(advantage_peers="prompt")).make(groups, 0).batch)
    scale = 5**0.5 + STD
    assert own == pytest.approx(
        {"g0/0": -1 / scale, "g0/1": 1 / scale, "g1/0": -1 / scale, "g1/1": 1 / scale}
    )
    assert common == pytest.approx(
        {"g0/0": -3 / scale, "g0/1": -1 / scale, "g1/0": 1 / scale, "g1/1": 3 / scale}
    )


def test_earlier_rewards_of_a_prompt_count_up_to_the_memory() -> None:
    """A baseline that forgets, or that another prompt's rewards leak into.

    The memory of 2 holds 3 and 8 after the first step: with 1 and 5 the mean is 4.25. The other prompt has 2
    and 4, mean 3. A step made again for lost groups must not count twice.
    """
    batches = StepBatches(config(prompt_history=2))
    batches.make([group(0, "p", [100.0, 3.0, 8.0])], 0)
    batches.commit()
    batches = resumed(batches, config(prompt_history=2))
    second = [group(1, "p", [1.0, 5.0]), group(2, "q", [2.0, 4.0])]
    scale = 2.5**0.5 + STD  # population variance of 1 5 2 4
    want = {"g1/0": -3.25 / scale, "g1/1": 0.75 / scale, "g2/0": -1 / scale, "g2/1": 1 / scale}
    for _ in range(2):
        assert advantages(batches.make(second, 1).batch) == pytest.approx(want)


def resumed(batches: StepBatches, settings: RunConfig) -> StepBatches:
    """Through what a checkpoint writes."""
    again = StepBatches(settings)
    again.restore(json.loads(json.dumps(batches.state())))
    return again


def test_equal_groups_are_left_out_when_asked_but_never_all() -> None:
    """They cost three forwards a sample and teach nothing; a step of nothing would publish nothing new."""
    groups = [group(0, "p", [1.0, 1.0]), group(1, "q", [0.0, 2.0])]
    kept = StepBatches(config()).make(groups, 0)
    assert kept.batch.num_samples == 4 and kept.metrics["advantage/skipped_groups"] == 0
    made = StepBatches(config(skip_equal_groups=True)).make(groups, 0)
    assert sorted(advantages(made.batch)) == ["g1/0", "g1/1"]
    assert made.batch.num_samples == 2 and made.metrics["advantage/skipped_groups"] == 1
    equal = StepBatches(config(skip_equal_groups=True)).make(groups[:1], 0)
    assert equal.batch.num_samples == 2 and equal.metrics["advantage/zero_std_groups"] == 1


def test_a_step_that_is_made_again_moves_the_share_once() -> None:
    """A share that grew by 1.1 twice, in the run or in a checkpoint that was written in between."""
    rewards = (RewardConfig(key="a"), RewardConfig(key="b"))
    algorithm = AlgorithmConfig(kl_samples="disagreeing", main_reward="a")
    batches = StepBatches(RunConfig(name="r", rewards=rewards, algorithm=algorithm))
    scores = tuple(Scores({"a": a, "b": b}) for a, b in ((3.0, 1.0), (2.0, 2.0), (1.0, 3.0)))
    scored = RolloutGroup("g0", 0, "p", group(0, "p", [0.0] * 3).rollouts, scores)
    batches.make([scored], 0)
    assert batches.state()["kl_recent"] == []
    batches.commit()
    (first,) = batches.state()["kl_recent"]
    lost = batches.make([scored], 1)
    assert batches.state()["kl_recent"] == [first]
    assert batches.make([scored], 1) == lost
    batches.commit()
    assert batches.state()["kl_recent"] == [first, first]


def test_a_step_chooses_samples_by_the_releases_rule_when_asked() -> None:
    """kl_rule that nobody reads. By the main reward the first sample is best, by the other one worst."""
    rewards = (RewardConfig(key="a"), RewardConfig(key="b"))
    choice = {"kl_samples": "disagreeing", "main_reward": "a"}
    scores = tuple(Scores({"a": a, "b": b}) for a, b in ((3.0, 1.0), (2.0, 2.0), (1.0, 3.0)))
    rollouts = group(0, "p", [0.0] * 3).rollouts
    chosen = {}
    for rule in ("paper", "release"):
        settings = RunConfig(name="r", rewards=rewards, algorithm=AlgorithmConfig(kl_rule=rule, **choice))
        batches = StepBatches(settings)
        batches.restore({"kl_share": 0.2, "kl_recent": []})
        batch = batches.make([RolloutGroup("g0", 0, "p", rollouts, scores)], 0).batch
        chosen[rule] = [s.kl_weight for rank in batch.ranks for micro in rank for s in micro]
    assert chosen["release"] == [0.0, 0.0, 3.0]
    assert chosen["paper"][2] == 0.0
