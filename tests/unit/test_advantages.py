"""Advantages against numbers worked out by hand and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.algorithms.advantages import AdvantageMode, group_advantages, shaped
from astrolabe_ray.step_metrics import training_rewards
from astrolabe_ray.types import Scores


def test_global_std_uses_all_rewards_of_the_batch() -> None:
    """A std over the centred rewards would be smaller."""
    advantages, stats = group_advantages([[1.0, 3.0], [5.0, 7.0]], std="global")
    scale = math.sqrt(5) + 1e-4  # population variance of 1, 3, 5, 7 is 5
    assert np.allclose(advantages, [[-1 / scale, 1 / scale]] * 2, rtol=1e-12)
    assert stats["advantage/reward_std"] == pytest.approx(math.sqrt(5))
    assert stats["advantage/group_std_mean"] == pytest.approx(1.0)


def test_group_std_divides_each_group_by_its_own_population_std() -> None:
    """With the sample std (n - 1) the first group would come out 1 / sqrt(2)."""
    advantages, _ = group_advantages([[1.0, 3.0], [0.0, 8.0]], std="group")
    assert np.allclose(advantages, [[-1 / 1.0001, 1 / 1.0001], [-4 / 4.0001, 4 / 4.0001]], rtol=1e-12)


@pytest.mark.parametrize("std", ["global", "group"])
def test_a_group_of_equal_rewards_gets_exact_zeros_and_is_counted(std) -> None:
    """0.1 summed three times and divided by 3 is not 0.1: dust over 1e-4 would become a signal."""
    advantages, stats = group_advantages([[0.1] * 3, [0.0, 1.0]], std=std)
    assert advantages[0] == [0.0, 0.0, 0.0]
    assert stats["advantage/zero_std_groups"] == 1


def test_groups_may_have_different_sizes() -> None:
    """Dropped rollouts must not shift the pairing of rewards and groups."""
    advantages, _ = group_advantages([[1.0, 2.0, 3.0], [4.0, 6.0]], std="global")
    assert [len(group) for group in advantages] == [3, 2]
    assert advantages[0][1] == 0.0


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=5))
def test_advantages_agree_with_numpy(rewards) -> None:
    """Independent vectorised form of the same definition, to 1e-6 of the 1e-4 floor of the scale."""
    advantages, _ = group_advantages(rewards, std="global")
    std = np.std([r for group in rewards for r in group])
    alone = all(len(group) == 1 for group in rewards)
    for group, got in zip(rewards, advantages, strict=True):
        want = (np.array(group) - np.mean(rewards if alone else group)) / (std + 1e-4)
        assert np.allclose(got, want, rtol=1e-6, atol=1e-6)


def test_single_rollouts_are_compared_with_each_other() -> None:
    """Each one minus its own mean is 0: nothing would ever be learned with one rollout per prompt.

    By hand: the mean of 1, 2, 6 is 3, the population variance (4 + 1 + 9) / 3.
    """
    advantages, stats = group_advantages([[1.0], [2.0], [6.0]], std="group")
    scale = math.sqrt(14 / 3) + 1e-4
    assert np.allclose(advantages, [[-2 / scale], [-1 / scale], [3 / scale]], rtol=1e-12)
    assert stats["advantage/zero_std_groups"] == 0


def test_rewards_beside_a_group_count_for_its_mean_and_std_only() -> None:
    """Earlier rewards of a prompt would get advantages, or widen the std of the whole batch.

    By hand: (1, 3) beside 8 has mean 4; the batch 1, 3, 0, 2 has population variance 1.25.
    """
    rewards, beside = [[1.0, 3.0], [0.0, 2.0]], [[8.0], []]
    advantages, stats = group_advantages(rewards, std="global", beside=beside)
    scale = math.sqrt(1.25) + 1e-4
    assert np.allclose(advantages, [[-3 / scale, -1 / scale], [-1 / scale, 1 / scale]], rtol=1e-12)
    assert stats["advantage/reward_std"] == pytest.approx(math.sqrt(1.25))
    own, _ = group_advantages(rewards, std="group", beside=beside)
    assert own[0][0] == pytest.approx(-3 / (math.sqrt((9 + 1 + 16) / 3) + 1e-4), rel=1e-12)


@pytest.mark.parametrize("rewards", [[], [[1.0], []], [[1.0, math.nan]], [[math.inf]]])
def test_rewards_that_cannot_be_compared_are_refused(rewards) -> None:
    """A NaN in one rollout would silently spread over the whole batch through the std."""
    with pytest.raises(ValueError, match=r"at least one reward in every group|must be finite"):
        group_advantages(rewards, std="global")


def test_rewards_scaled_within_their_group_weigh_what_their_weights_say() -> None:
    """Raw scores of 0..10 would drown scores of 0..1, whatever the weights.

    By hand: (4, 6, 8) has mean 6 and std sqrt(8/3), so +-1.2247; (0.3, 0.1, 0.2) is (1, -1, 0)
    times the same. A reward that is equal for the whole group says nothing about it.
    """
    columns = {"wide": (4.0, 6.0, 8.0), "narrow": (0.3, 0.1, 0.2), "equal": (5.0, 5.0, 5.0)}
    group = [Scores({key: column[i] for key, column in columns.items()}) for i in range(3)]
    weights = {"wide": 1.0, "narrow": 2.0, "equal": 100.0}
    (raw,) = training_rewards([group], weights, "raw")
    assert raw == pytest.approx([504.6, 506.2, 508.4])
    (scaled,) = training_rewards([group], weights, "group")
    assert scaled == pytest.approx([1.2247, -2.4495, 1.2247], abs=5e-3)
    (alone,) = training_rewards([group[:1]], weights, "group")
    assert alone == [0.0]


@pytest.mark.parametrize(
    ("mode", "weights"),
    [
        ("all", [0.0, 0.3, 0.5, 0.7, 1.0]),
        ("positive_only", [0.5, 0.5, 0.5, 0.7, 1.0]),
        ("negative_only", [0.0, 0.3, 0.5, 0.5, 0.5]),
        ("one_only", [0.5, 0.5, 0.5, 0.6, 0.6]),
        ("binary", [0.4, 0.4, 0.5, 0.6, 0.6]),
    ],
)
def test_modes_make_the_mixing_weights_of_diffusion_nft(mode: AdvantageMode, weights: list[float]) -> None:
    """By hand: clip to 5, take the part, r = A / 10 + 1/2. Equal groups stay at 1/2: they teach nothing."""
    advantages = shaped([-8.0, -2.0, 0.0, 2.0, 8.0], mode)
    r = [max(-5.0, min(5.0, a)) / 10 + 0.5 for a in advantages]
    assert r == pytest.approx(weights)
