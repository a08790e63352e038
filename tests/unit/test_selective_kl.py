"""Whose KL counts, and when the reference moves, on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe_ray.algorithms.lagging_reference import LaggingReference, after_step
from astrolabe_ray.algorithms.selective_kl import KlShare, adapted, disagreement, ranks, selected


def test_ranks_count_from_the_lowest_and_ties_share_theirs() -> None:
    """Ties broken by position would make a sample suspicious for its place in the batch."""
    assert ranks([0.3, 9.0, -1.0]) == [2, 3, 1]
    assert ranks([5.0, 1.0, 5.0, 5.0]) == [3, 1, 3, 3]  # the mean of 2, 3, 4
    assert ranks([2.0, 2.0]) == [1.5, 1.5]


@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_rank_counts_the_lower_values_and_half_of_the_equal_ones(values: list[float]) -> None:
    """A slip with many ties at once."""
    lower = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    assert ranks(values) == [a + (b + 1) / 2 for a, b in zip(lower, equal, strict=True)]


def test_disagreement_is_positive_where_the_main_reward_praises_more_than_the_others() -> None:
    """With the sign turned, honest samples are held back and hacked ones run free."""
    main = [4.0, 3.0, 2.0, 1.0]  # ranks 4 3 2 1
    first, second = [1.0, 2.0, 3.0, 4.0], [10.0, 10.0, 30.0, 20.0]  # ranks 1 2 3 4 and 1.5 1.5 4 3
    assert disagreement(main, [first]) == [0.75, 0.25, -0.25, -0.75]
    # mean ranks of the others: 1.25, 1.75, 3.5, 3.5
    assert disagreement(main, [first, second]) == [2.75 / 4, 1.25 / 4, -1.5 / 4, -2.5 / 4]


def test_equal_main_rewards_disagree_by_the_others_alone() -> None:
    """All main ranks are 2; sorting would have given them 1, 2, 3."""
    assert disagreement([7.0, 7.0, 7.0], [[0.0, 1.0, 2.0]]) == pytest.approx([1 / 3, 0, -1 / 3])


def test_rewards_that_cannot_be_ranked_are_refused() -> None:
    """A NaN sorts anywhere, and zip would cut the longer row."""
    with pytest.raises(ValueError, match="nan"):
        ranks([1.0, math.nan])
    with pytest.raises(ValueError, match=r"2 and \[3\]"):
        disagreement([1.0, 2.0], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"\[\]"):
        disagreement([1.0, 2.0], [])


def test_the_top_share_of_positive_disagreements_is_selected() -> None:
    """Five positive values .1 to .5: the 0.8 percentile is at 3.2 steps of 4, .42; the 0.5 one is .3."""
    values = [0.3, -0.9, 0.1, 0.5, 0.0, 0.2, 0.4]
    assert selected(values, 0.2) == [False, False, False, True, False, False, False]
    assert selected(values, 0.5) == [False, False, False, True, False, False, True]


def test_a_value_is_not_above_itself() -> None:
    """`>=` would select the whole batch when all praised samples are equal."""
    assert selected([0.4, -0.4], 0.1) == [False, False]
    assert selected([0.2, 0.2, 0.2, -0.6], 0.1) == [False] * 4
    assert selected([-0.1, 0.0], 0.2) == [False, False]


@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=40), st.floats(0.02, 0.2))
@settings(max_examples=100, deadline=None)
def test_the_percentile_is_that_of_numpy(values: list[float], share: float) -> None:
    """An interpolation off by one selects one sample more or less, every step."""
    praised = [value for value in values if value > 0]
    limit = np.percentile(praised, 100 * (1 - share)) if praised else math.inf
    for value, is_selected in zip(values, selected(values, share), strict=True):
        assert is_selected == (value > limit) or value == pytest.approx(limit)


def test_the_share_grows_and_shrinks_with_the_mean_disagreement() -> None:
    """A share that never moves, or that moves at the first batch, which has nothing to compare with."""
    state = adapted(KlShare(), [0.2, 0.4, -0.9])
    assert state == KlShare(0.1, (pytest.approx(0.3),))
    more = adapted(state, [0.5])
    assert more.share == pytest.approx(0.11)
    between = adapted(more, [0.4, -0.1])
    assert between.share == more.share
    less = adapted(between, [0.1])
    assert less.share == pytest.approx(0.099)
    assert less.recent == pytest.approx((0.3, 0.5, 0.4, 0.1))
    assert adapted(less, [0.0, -0.2]) == less


def test_the_share_stays_within_bounds_and_remembers_twenty_steps() -> None:
    """Without bounds the penalty ends up on all samples or on none."""
    state = KlShare()
    for step in range(30):
        state = adapted(state, [0.01 * (step + 1)])
    assert state.share == 0.2  # 0.1 * 1.1^8 > 0.2
    assert state.recent == pytest.approx([0.01 * (step + 1) for step in range(10, 30)])
    for step in range(60):
        state = adapted(state, [0.009 / (step + 1)])
    assert state.share == 0.02


def test_the_reference_is_set_again_when_the_distance_exceeds_the_threshold() -> None:
    """A penalty that only pulls back stops all learning once the policy is far."""
    state = LaggingReference(0.15)
    for step in range(6):
        state, is_due = after_step(state, 0.15, first_threshold=0.15, max_age=15)
        assert (state.age, is_due) == (step + 1, False)  # equal is not more
    state, is_due = after_step(state, 0.151, first_threshold=0.15, max_age=15)
    assert (state, is_due) == (LaggingReference(0.15, 0, 1), True)  # 7 steps: neither long nor short


def test_the_reference_never_gets_older_than_its_largest_age() -> None:
    """16 steps with a largest age of 15, whose references are 0 to 15 steps old; then .15 - .01."""
    state, ages = LaggingReference(0.15), []
    for _ in range(17):
        ages.append(state.age)
        state, is_due = after_step(state, 0.0, first_threshold=0.15, max_age=15)
    assert ages == [*range(16), 0] and not is_due
    assert state == LaggingReference(pytest.approx(0.14), 1, 1)


def test_the_threshold_rises_for_short_lives_and_falls_for_long_ones_within_bounds() -> None:
    """The released rule drops it to a third at the first short life."""
    state = LaggingReference(0.15)
    for _ in range(8):
        state, is_due = after_step(state, 1.0, first_threshold=0.15, max_age=15)
        assert is_due
    assert state.threshold == pytest.approx(0.2)
    for _ in range(2 * 16):
        state, _ = after_step(state, 0.0, first_threshold=0.15, max_age=15)
    assert state.threshold == pytest.approx(0.18)
    for _ in range(20 * 16):
        state, _ = after_step(state, 0.0, first_threshold=0.15, max_age=15)
    assert state.threshold == pytest.approx(0.1)
    assert state.num_refreshes == 8 + 2 + 20


def test_a_distance_that_is_not_a_number_moves_nothing() -> None:
    """The step was skipped; its policy must not become the reference for that."""
    state, is_due = after_step(LaggingReference(0.15), math.nan, first_threshold=0.15, max_age=15)
    assert (state, is_due) == (LaggingReference(0.15, 1, 0), False)
