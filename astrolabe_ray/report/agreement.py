"""How far two rewards agree about the same videos: Spearman's rank correlation, over all and within prompts.

A policy that has learned to please its reward and nothing else shows here: the reward that it was trained on
rises, and how that ranks the videos has ever less to do with how another reward ranks them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Of two rewards. None: there is nothing to rank, as when one of them gives every video the same."""

    first: str
    second: str
    over_all: float | None  # Spearman's rho of all videos, -1 to 1
    within_prompts: float | None  # mean of rho over prompts whose videos both rewards rank
    num_videos: int
    num_prompts: int  # that the mean is over


def ranks(values: Sequence[float]) -> np.ndarray:
    """1 for the smallest; equals share the mean of their places. Example: `[5, 7, 5]` -> `[1.5, 3, 1.5]`."""
    _, places, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + 1 + ends) / 2)[places]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks; None if either side has one value only."""
    a, b = (ranks(side) - (len(side) + 1) / 2 for side in (first, second))
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size else None


def agreement(
    first: str, second: str, rows: Sequence[Mapping[str, float]], prompts: Sequence[str]
) -> Agreement:
    """Of two rewards over the videos that have both; `rows[i]` are the scores of a video of `prompts[i]`."""
    both = [
        (r[first], r[second], p) for r, p in zip(rows, prompts, strict=True) if {first, second} <= r.keys()
    ]
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for a, b, prompt in both:
        groups[prompt].append((a, b))
    found = [spearman(*zip(*group, strict=True)) for group in groups.values() if len(group) > 1]
    within = [rho for rho in found if rho is not None]
    return Agreement(
        first,
        second,
        over_all=spearman([a for a, *_ in both], [b for _, b, _ in both]) if both else None,
        within_prompts=fmean(within) if within else None,
        num_videos=len(both),
        num_prompts=len(within),
    )


def agreements(rows: Sequence[Mapping[str, float]], prompts: Sequence[str]) -> list[Agreement]:
    """Of every two rewards, in the order in which they first appear."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [agreement(a, b, rows, prompts) for a, b in combinations(keys, 2)]
