"""Rank correlation against numbers worked out by hand and against the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.report.agreement import agreement, agreements, ranks, spearman


def test_equal_values_share_their_places() -> None:
    """Ties broken by the order of the files would make agreement out of nothing."""
    assert ranks([30, 10, 20, 10, 10]).tolist() == [5, 2, 4, 2, 2]


def test_spearman_of_numbers_worked_out_by_hand() -> None:
    """Places 1 2 3 4 5 and 2 1 4 3 5: d = -1 1 -1 1 0, rho = 1 - 6 x 4 / (5 x 24) = 0.8."""
    assert spearman([0.1, 0.2, 0.3, 0.4, 90], [-3, -8, 5, 2, 7]) == pytest.approx(0.8)
    # With ties: places 1.5 1.5 3 and 1 2 3, centred -.5 -.5 1 and -1 0 1: 1.5 / sqrt(1.5 x 2)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3))
    assert spearman([1, 1, 1], [1, 2, 3]) is None


@given(st.permutations(range(12)))
def test_without_ties_it_is_the_textbook_formula(order: list[int]) -> None:
    """rho = 1 - 6 sum d^2 / (n (n^2 - 1)), whatever the scale of the scores."""
    scores = [float(np.exp(place)) for place in order]
    d = np.arange(12) - np.array(order)
    assert spearman(list(range(12)), scores) == pytest.approx(1 - 6 * (d**2).sum() / (12 * 143))
    assert spearman(scores, [-value for value in scores]) == pytest.approx(-1)


def test_easy_prompts_make_rewards_agree_that_disagree_about_every_prompt() -> None:
    """Simpson's paradox: between prompts both rise, within each prompt one falls where the other rises."""
    prompts = ["hard"] * 3 + ["easy"] * 3
    rows = [{"a": a, "b": b} for a, b in zip([1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 12, 11], strict=True)]
    (found,) = agreements(rows, prompts)
    assert found.within_prompts == -1.0 and found.num_prompts == 2
    # places 1 2 3 4 5 6 and 3 2 1 6 5 4: d = -2 0 2 -2 0 2, rho = 1 - 6 x 16 / (6 x 35)
    assert found.over_all == pytest.approx(1 - 96 / 210) and found.num_videos == 6


def test_videos_that_lack_a_score_do_not_count() -> None:
    """A failed video that counts as zero would be the lowest of all."""
    rows = [{"a": 1.0, "b": 1.0}, {"a": 0.5}, {"a": 2.0, "b": 3.0}]
    found = agreement("a", "b", rows, ["p", "p", "q"])
    assert (found.num_videos, found.over_all) == (2, 1.0)
    assert (found.num_prompts, found.within_prompts) == (0, None), "each prompt has one video with both"
    assert agreement("a", "c", rows, ["p", "p", "q"]).over_all is None
