"""From the scores of a step's groups to the weights of its KL penalty."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from astrolabe_ray.config.schema import AlgorithmConfig, RewardConfig, RunConfig
from astrolabe_ray.kl_selection import KlSelection
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores


def config(weight_of_other: float = 1.0, **algorithm: str) -> RunConfig:
    rewards = (RewardConfig(key="main"), RewardConfig(key="other", weight=weight_of_other))
    return RunConfig(name="run", rewards=rewards, algorithm=AlgorithmConfig(**algorithm))


def groups(main: Sequence[float], other: Sequence[float]) -> list[RolloutGroup]:
    """Groups of three rollouts each."""
    scores = [Scores({"main": a, "other": b}) for a, b in zip(main, other, strict=True)]
    found = []
    for number in range(len(scores) // 3):
        rollouts = tuple(Rollout("g", i, "p", i, PolicyVersion(), "a", None, ()) for i in range(3))
        found.append(RolloutGroup("g", number, "p", rollouts, tuple(scores[3 * number : 3 * number + 3])))
    return found


SELECTIVE = {"kl_samples": "disagreeing", "main_reward": "main"}
MAIN = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]  # ranks 6 5 4 3 2 1
OTHER = [1.0, 3.0, 2.0, 4.0, 5.0, 6.0]  # ranks 1 3 2 4 5 6; differences 5 2 2 -1 -3 -5


def test_every_sample_counts_once_unless_samples_are_chosen() -> None:
    """The plain penalty would change its size."""
    selection = KlSelection(config())
    assert selection.weights(groups(MAIN, OTHER)) == ([[1.0] * 3, [1.0] * 3], {})
    assert selection.state() == {}


def test_the_selected_sample_carries_the_whole_mean() -> None:
    """The penalty is the mean over the selected: one of six weighs six times in the batch's mean."""
    weights, metrics = KlSelection(config(**SELECTIVE)).weights(groups(MAIN, OTHER))
    assert weights == [[6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert metrics == {"kl/share": 0.1, "kl/selected": pytest.approx(1 / 6)}


def test_nobody_selected_weighs_nothing() -> None:
    """A division by their number."""
    weights, metrics = KlSelection(config(**SELECTIVE)).weights(groups(MAIN, MAIN))
    assert weights == [[0.0] * 3] * 2 and metrics["kl/selected"] == 0


def test_a_reward_of_negative_weight_ranks_the_other_way_round() -> None:
    """Its lowest score is what is optimised."""
    turned = [-value for value in OTHER]
    weights, _ = KlSelection(config(-0.5, **SELECTIVE)).weights(groups(MAIN, turned))
    assert weights == [[6.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_the_share_of_a_resumed_run_goes_on() -> None:
    """A share that starts anew compares the first batch with nothing."""
    selection = KlSelection(config(**SELECTIVE))
    selection.weights(groups(MAIN, [4.0, 5.0, 6.0, 3.0, 2.0, 1.0]))  # differences 2 0 -2 0 0 0
    resumed = KlSelection(config(**SELECTIVE))
    resumed.restore(json.loads(json.dumps(selection.state())))
    _, metrics = resumed.weights(groups(MAIN, OTHER))  # mean 3 / 6 after 2 / 6
    assert metrics["kl/share"] == pytest.approx(0.11)
    assert resumed.state() == {"kl_share": metrics["kl/share"], "kl_recent": pytest.approx([1 / 3, 0.5])}
