"""Which samples the KL penalty counts for: those that the main reward praises and the others do not.

The selective KL of Astrolabe (arXiv 2603.17051) after GARDO (arXiv 2512.24138): a sample that one
reward ranks far above what the others think of it may be exploiting that reward. Plain Python floats;
docs/decisions/0004 says where the released code does something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

FIRST_SHARE = 0.1
MIN_SHARE, MAX_SHARE = 0.02, 0.2
GROWTH, DECAY = 1.1, 0.9
MEMORY = 20
"""Steps whose mean disagreement the newest one is compared with."""


@dataclass(frozen=True)
class KlShare:
    """Share (0..1) of the praised samples that are penalised, and what it adapts to.

    Example: `KlShare(0.11, (0.21, 0.24))` after two steps, the second with more disagreement.
    """

    share: float = FIRST_SHARE
    recent: tuple[float, ...] = ()  # mean disagreement of praised samples in the last steps, oldest first


def disagreement(main: Sequence[float], others: Sequence[Sequence[float]]) -> list[float]:
    """How much better each sample ranks by the main reward than by the others, in shares of the batch.

    (rank by `main` - mean rank by `others`) / number of samples, within (-1, 1); rank 1 is the lowest
    reward. Positive: the main reward praises what the others do not. `others`: one row per reward, at
    least one. Raises ValueError for a value that is not finite and rows of different length.
    """
    if not others or any(len(row) != len(main) for row in others):
        raise ValueError(f"rewards of {len(main)} and {[*map(len, others)]} samples can't be compared")
    main_ranks, other_ranks = ranks(main), [ranks(row) for row in others]
    means = [math.fsum(column) / len(others) for column in zip(*other_ranks, strict=True)]
    return [(rank - mean) / len(main) for rank, mean in zip(main_ranks, means, strict=True)]


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, 1 for the lowest; equal values share the mean of their ranks.

    Raises ValueError for a value that is not finite.
    """
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"only finite rewards have ranks, got {[v for v in values if not math.isfinite(v)]}")
    ordered = sorted(values)
    first = {value: position for position, value in reversed(list(enumerate(ordered, start=1)))}
    last = {value: position for position, value in enumerate(ordered, start=1)}
    return [(first[value] + last[value]) / 2 for value in values]


def adapted(state: KlShare, disagreements: Sequence[float]) -> KlShare:
    """The share for a batch: larger when its praised samples disagree more than any recent batch's.

    Times 1.1 above all of the last 20 means, times 0.9 below all of them, within 0.02..0.2; a batch
    without a praised sample says nothing.
    """
    praised = [value for value in disagreements if value > 0]
    if not praised:
        return state
    mean = math.fsum(praised) / len(praised)
    share = state.share
    if state.recent and mean > max(state.recent):
        share *= GROWTH
    elif state.recent and mean < min(state.recent):
        share *= DECAY
    share = min(max(share, MIN_SHARE), MAX_SHARE)
    return replace(state, share=share, recent=(*state.recent, mean)[-MEMORY:])


def selected(disagreements: Sequence[float], share: float) -> list[bool]:
    """Which samples are penalised: those above the (1 - share) percentile of the positive values.

    Percentiles are interpolated linearly. A value is never above itself: the only praised sample, and
    all that are equal at the top, are not selected.
    """
    praised = [value for value in disagreements if value > 0]
    if not praised:
        return [False] * len(disagreements)
    threshold = percentile(praised, 1 - share)
    return [value > threshold for value in disagreements]


def percentile(values: Sequence[float], fraction: float) -> float:
    """Value below which `fraction` (0..1) of `values` lie, interpolated linearly."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
