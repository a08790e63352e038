"""Selective KL as the first Astrolabe release does it, for comparison only (see docs/decisions/0004).

Plain Python floats. A sample is selected when the main reward ranks it *worse* than the others do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from astrolabe_ray.algorithms.lagging_reference import LaggingReference
from astrolabe_ray.algorithms.selective_kl import (
    DECAY,
    GROWTH,
    MAX_SHARE,
    MEMORY,
    MIN_SHARE,
    KlShare,
    percentile,
)

NUM_OTHERS = 2
"""Rewards beside the main one that are looked at: the first two in alphabetical order."""
SHORT_AGE = 5  # steps
THRESHOLD_STEP = 0.01
LOWEST_THRESHOLD, SHORT_AGE_THRESHOLD = 0.1, 0.05


def released_disagreement(main: Sequence[float], others: Sequence[Sequence[float]]) -> list[float]:
    """Rank by `main` - mean rank by `others`, with rank 1 for the highest reward and ties by position.

    Positive: the main reward ranks the sample worse. `others`: one row per reward, at least one.
    """
    main_ranks, rows = _ranks_from_best(main), [_ranks_from_best(row) for row in others]
    means = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [rank - mean for rank, mean in zip(main_ranks, means, strict=True)]


def released_adapted(state: KlShare, disagreements: Sequence[float]) -> KlShare:
    """The share for a batch. Unlike the paper's, values of exactly 0 count as disagreements, too."""
    counted = [value for value in disagreements if value >= 0]
    if not counted:
        return state
    mean = math.fsum(counted) / len(counted)
    factor = 1.0
    if state.recent:
        factor = GROWTH if mean > max(state.recent) else DECAY if mean < min(state.recent) else 1.0
    share = min(max(state.share * factor, MIN_SHARE), MAX_SHARE)
    return replace(state, share=share, recent=(*state.recent, mean)[-MEMORY:])


def released_selected(disagreements: Sequence[float], share: float) -> list[bool]:
    """Samples above the (1 - share) percentile of all values from 0 on, interpolated linearly."""
    counted = [value for value in disagreements if value >= 0]
    if not counted:
        return [False] * len(disagreements)
    threshold = percentile(counted, 1 - share)
    return [value > threshold for value in disagreements]


def released_after_step(state: LaggingReference, kl: float, *, max_age: int) -> tuple[LaggingReference, bool]:
    """The state after a step of penalty `kl`, and whether the reference is now the trained policy.

    Age alone lowers the threshold by 0.01, to 0.1 at least; a reference that lasted fewer than 5 steps sets
    it to min(threshold + 0.01, 0.05), so to 0.05 at once.
    """
    age = state.age + 1
    is_old = age > max_age
    if not is_old and not kl > state.threshold:
        return replace(state, age=age), False
    threshold = state.threshold
    if is_old:
        threshold = max(threshold - THRESHOLD_STEP, LOWEST_THRESHOLD)
    if age < SHORT_AGE:
        threshold = min(threshold + THRESHOLD_STEP, SHORT_AGE_THRESHOLD)
    return LaggingReference(threshold, 0, state.num_refreshes + 1), True


def _ranks_from_best(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda i: -values[i])  # stable
    ranks = [0.0] * len(values)
    for rank, index in enumerate(order, start=1):
        ranks[index] = float(rank)
    return ranks
