"""The first release's selective KL against numbers worked out by hand and numpy's percentile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from astrolabe_ray.algorithms.lagging_reference import LaggingReference
from astrolabe_ray.algorithms.released_kl import (
    released_adapted,
    released_after_step,
    released_disagreement,
    released_selected,
)
from astrolabe_ray.algorithms.selective_kl import KlShare
from astrolabe_ray.config.schema import AlgorithmConfig
from learner.reference import Reference


def test_ranks_count_from_the_best_and_ties_by_position() -> None:
    """With the paper's ranks the comparison would select the opposite samples.

    Main 3 1 2 has ranks 1 3 2; the others 5 5 0 have 1 2 3.
    """
    assert released_disagreement([3.0, 1.0, 2.0], [[5.0, 5.0, 0.0]]) == [0.0, 1.0, -1.0]


def test_the_threshold_is_the_percentile_of_all_values_from_zero_on() -> None:
    """The paper's is that of positive values only, and selects fewer."""
    values = [0.0, 0.0, 0.0, 1.0, 2.0, -4.0]
    threshold = np.percentile([0.0, 0.0, 0.0, 1.0, 2.0], 100 - 100 * 0.5)
    assert released_selected(values, 0.5) == [value > threshold for value in values]
    assert released_selected([-1.0], 0.5) == [False]


def test_zeros_count_in_the_mean_that_the_share_adapts_to() -> None:
    """Mean of 0, 2 is 1: above 0.5, so the share grows; the paper would see 2."""
    state = released_adapted(KlShare(0.1, (0.5,)), [0.0, 2.0, -3.0])
    assert state == KlShare(pytest.approx(0.11), (0.5, 1.0))
    assert released_adapted(state, [0.0, 0.0]).share == pytest.approx(0.099)


@pytest.mark.parametrize(
    ("age", "kl", "threshold", "want"),
    [
        (15, 0.0, 0.15, (0.14, 0)),  # age alone: down by 0.01
        (15, 0.0, 0.105, (0.1, 0)),
        (2, 0.2, 0.15, (0.05, 0)),  # short-lived: down to 0.05 at once, where up was meant
        (7, 0.2, 0.15, (0.15, 0)),
        (7, 0.1, 0.15, (0.15, 8)),  # nothing is due
    ],
)
def test_the_threshold_moves_by_the_releases_minimum_and_maximum(age, kl, threshold, want) -> None:
    """A comparison with sensible rules compares something else."""
    state, is_due = released_after_step(LaggingReference(threshold, age), kl, max_age=15)
    assert (state.threshold, state.age) == (pytest.approx(want[0]), want[1])
    assert is_due == (want[1] == 0)


@pytest.mark.parametrize(
    ("choice", "threshold"),
    [
        ({"kl_samples": "all", "kl_reference": "lagging"}, 0.16),
        ({"kl_samples": "disagreeing", "main_reward": "a"}, 0.05),
    ],
)
def test_the_released_threshold_is_for_the_selection_only(choice: dict[str, Any], threshold: float) -> None:
    """`algorithm.compat` sets the rule in every run; the release had a moving reference for its selection."""
    engine: Any = SimpleNamespace(write=lambda name, flat: None)
    reference = Reference(engine, AlgorithmConfig(kl_rule="release", kl_coef=0.1, **choice))
    for _ in range(2):
        told = reference.after_step(10.0, torch.zeros(1))
    assert told["kl/reference_threshold"] == pytest.approx(threshold)
