"""What evaluations say, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from astrolabe_ray.report.statistics import (
    clustered_se,
    comparable_means,
    compare,
    diversity,
    is_paired,
    paired,
)
from astrolabe_ray.types import EvalRecord, Evaluation, PolicyVersion


def test_a_paired_difference_is_the_one_computed_by_hand() -> None:
    """Differences 2, 0, -1, 3: mean 1, squares of deviations 1 + 1 + 4 + 4 = 10, SE = sqrt(10 / 3 / 4)."""
    result = paired([1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 2.0, 7.0], ["a", "b", "c", "d"])
    assert (result.reward_before, result.reward_after) == (2.5, 3.5)
    assert result.paired_diff_mean == 1.0
    assert result.paired_diff_se == pytest.approx(0.9128709291752769, rel=1e-12)
    assert result.paired_diff_ci95 == pytest.approx(3.182446 * 0.9128709291752769, rel=1e-6)  # t of 3 degrees
    assert result.win_rate == 0.625, "two of four, and half of the tie"
    assert result.num_videos == 4


def test_pairing_removes_what_prompts_differ_by() -> None:
    """An unpaired error would drown a small change in the differences between prompts."""
    result = paired([0.0, 100.0, -50.0], [1.0, 101.0, -49.0], ["a", "b", "c"])
    assert (result.paired_diff_mean, result.paired_diff_se, result.win_rate) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(("before", "after"), [([1.0, 2.0], [1.0]), ([1.0], [2.0]), ([], [])])
def test_what_does_not_pair_up_is_refused(before: list[float], after: list[float]) -> None:
    """A mean over the pairs that happen to exist is not the mean that the page names."""
    with pytest.raises(ValueError, match=f"{len(before)} videos before and {len(after)} after"):
        paired(before, after, ["a"] * len(before))


def test_videos_of_one_prompt_are_not_counted_as_independent() -> None:
    """Each video shown twice adds no knowledge: the error must stay, not shrink by sqrt(2)."""
    once = [2.0, 0.0, -1.0, 3.0]
    assert clustered_se([*once, *once], ["a", "b", "c", "d"] * 2) == pytest.approx(0.9128709291752769)
    assert clustered_se([*once, *once], range(8)) == pytest.approx((20 / 7 / 8) ** 0.5)


def test_the_clustered_error_is_the_spread_of_means_that_it_claims() -> None:
    """Simulated: prompts differ by 1, videos of a prompt by 0.5; the mean of 40 x 4 varies by 0.163."""
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (400, 40, 1)) + rng.normal(0, 0.5, (400, 40, 4))
    claimed = [clustered_se(draw.ravel().tolist(), [i // 4 for i in range(160)]) for draw in draws]
    truth = (1 / 40 + 0.25 / 160) ** 0.5
    assert np.mean(claimed) == pytest.approx(truth, rel=0.03)
    assert draws.mean((1, 2)).std() == pytest.approx(truth, rel=0.1)


def test_videos_of_a_single_prompt_still_have_an_error() -> None:
    """A run on one prompt would divide by zero."""
    assert clustered_se([2.0, 0.0, -1.0, 3.0], ["a"] * 4) == pytest.approx(0.9128709291752769)


def evaluation(phase: str, records: list[tuple[str, int, float]]) -> Evaluation:
    made = tuple(EvalRecord(p, seed, 0, {"clip": s, "rest": 1 - s}, 2 * s) for p, seed, s in records)
    return Evaluation(phase, PolicyVersion(), made, 0.0)


def test_every_reward_is_compared_by_itself() -> None:
    """A total that rises may hide a reward that falls."""
    before = evaluation("before", [("a", 1, 0.25), ("a", 2, 0.5)])
    after = evaluation("after", [("a", 1, 0.5), ("a", 2, 0.75)])
    compared = compare(before, after)
    assert list(compared) == ["total", "clip", "rest"]
    assert {key: value["paired_diff_mean"] for key, value in compared.items()} == {
        "total": 0.5,
        "clip": 0.25,
        "rest": -0.25,
    }
    assert {key: value["win_rate"] for key, value in compared.items()} == {"total": 1, "clip": 1, "rest": 0}


@pytest.mark.parametrize("other", [("b", 2, 0.5), ("a", 3, 0.5)])
def test_videos_of_other_prompts_or_seeds_are_not_compared(other: tuple[str, int, float]) -> None:
    """Noise of other seeds would count as an effect of training."""
    before = evaluation("before", [("a", 1, 0.25), ("a", 2, 0.5)])
    with pytest.raises(ValueError, match="'before' and 'after' are not of the same prompts and seeds"):
        compare(before, evaluation("after", [("a", 1, 0.25), other]))


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    """uint8 arithmetic that wraps around would call 0 - 204 = 52.

    Black, bright and half bright: distances 0.8, 0.8 sqrt(1 / 2) and 0.8 sqrt(1 / 2).
    """
    black, bright = (np.full((2, 3, 4, 4), value, np.uint8) for value in (0, 204))
    half = black.copy()
    half[0] = 204
    assert diversity([black, bright]) == pytest.approx(0.8)
    assert diversity([black, bright, half]) == pytest.approx(0.8 * (1 + 2 * 0.5**0.5) / 3)
    assert diversity([bright, bright]) == 0.0
    assert diversity([bright]) == 0.0


def test_evaluations_are_compared_on_the_videos_that_both_have() -> None:
    """Paired by position, every video behind a prompt that was left out is compared with another one."""
    whole = [("a", 1, 0.25), ("a", 2, 0.5), ("b", 3, 0.75), ("c", 5, 0.5)]
    before = replace(evaluation("before", whole[1:]), left_out=(9,))
    after = replace(
        evaluation("after", [whole[0], *((p, s, x + 0.25) for p, s, x in whole[2:])]), left_out=(8,)
    )
    assert is_paired(before, after)
    total = compare(before, after)["total"]
    assert (total["num_videos"], total["reward_before"], total["paired_diff_mean"]) == (2, 1.25, 0.5)
    assert not is_paired(before, replace(after, left_out=())), "a video is missing and nobody says why"
    assert not is_paired(before, replace(evaluation("after", whole[:2]), left_out=(8,))), "one is no pair"


def test_a_policy_is_not_the_best_because_a_hard_prompt_was_left_out() -> None:
    """By hand: over a and b the second is worse, though its own mean is higher."""
    totals = {1: {"a": 3.0, "b": 5.0, "hard": 0.0}, 2: {"a": 3.0, "b": 4.0}}
    assert comparable_means(totals) == {1: 4.0, 2: 3.5}
    assert comparable_means({1: {"a": 3.0}, 2: {"b": 4.0}}) == {1: 3.0, 2: 4.0}
    assert comparable_means({}) == {}
