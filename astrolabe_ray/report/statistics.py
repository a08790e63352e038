"""What evaluations say: paired differences, and how different the videos of one prompt are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import fmean
from typing import TypeVar

import numpy as np

from astrolabe_ray.report.student import t_quantile
from astrolabe_ray.types import EvalRecord, Evaluation

Video = TypeVar("Video", bound=Hashable)


@dataclass(frozen=True)
class Paired:
    """A reward before and after on the same prompts and noise seeds."""

    reward_before: float
    reward_after: float
    paired_diff_mean: float
    paired_diff_se: float  # standard error of the mean difference, clustered by prompt
    paired_diff_ci95: float  # half the width of its 95 % confidence interval
    win_rate: float  # share of videos that got better; a tie counts half
    num_videos: int


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of values that are independent between clusters but not within one.

    `sqrt(C / (C - 1) sum over C clusters of (sum of deviations from the mean)^2) / n`: the sandwich estimate
    with the small-sample factor (Cameron and Miller, 2015, section II). With one value a cluster it is the
    ordinary standard error. The values of a single cluster count as independent, for want of another.
    """
    if len(set(clusters)) == 1:
        clusters = range(len(values))
    mean, sums = fmean(values), defaultdict[Hashable, float](float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    correction = len(sums) / (len(sums) - 1)
    return math.sqrt(correction * sum(total**2 for total in sums.values())) / len(values)


def paired(before: Sequence[float], after: Sequence[float], prompts: Sequence[str]) -> Paired:
    """Needs at least two videos. Raises ValueError when the two do not pair up."""
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"{len(before)} videos before and {len(after)} after do not make two pairs or more")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    return Paired(
        reward_before=fmean(before),
        reward_after=fmean(after),
        paired_diff_mean=fmean(differences),
        paired_diff_se=(error := clustered_se(differences, prompts)),
        paired_diff_ci95=error * t_quantile(0.975, _freedom(prompts)),
        win_rate=fmean((d > 0) + 0.5 * (d == 0) for d in differences),
        num_videos=len(differences),
    )


def _freedom(clusters: Sequence[Hashable]) -> int:
    """Degrees of freedom of `clustered_se`: one less than there are clusters, or values of a single one."""
    num_clusters = len(set(clusters))
    return (num_clusters if num_clusters > 1 else len(clusters)) - 1


def is_paired(before: Evaluation, after: Evaluation) -> bool:
    """Whether both are of the same prompts, seeds and rewards, with two videos or more that both have."""
    pairs = _pairs(before, after)
    return pairs is not None and len(pairs) > 1


def compare(before: Evaluation, after: Evaluation) -> dict[str, dict[str, float]]:
    """`Paired` of the total and of each reward, as plain numbers, over the videos that both have.

    Raises ValueError if the two evaluations are not of the same prompts and seeds.
    """
    if not (pairs := _pairs(before, after)):
        raise ValueError(f"'{before.phase}' and '{after.phase}' are not of the same prompts and seeds")
    prompts = [first.prompt for first, _ in pairs]
    compared = {"total": paired([a.total for a, _ in pairs], [b.total for _, b in pairs], prompts)}
    for key in pairs[0][0].scores:
        compared[key] = paired([a.scores[key] for a, _ in pairs], [b.scores[key] for _, b in pairs], prompts)
    return {key: asdict(value) for key, value in compared.items()}


def _pairs(before: Evaluation, after: Evaluation) -> list[tuple[EvalRecord, EvalRecord]] | None:
    """Videos of the same prompt and seed; None if one lacks a video without having left out a prompt."""
    first, second = ({(r.prompt, r.seed, *r.scores): r for r in e.records} for e in (before, after))
    if first.keys() - second.keys() and not after.left_out:
        return None
    if second.keys() - first.keys() and not before.left_out:
        return None
    return [(record, second[key]) for key, record in first.items() if key in second]


def comparable_means(totals: Mapping[int, Mapping[Video, float]]) -> dict[int, float]:
    """Step -> mean total over the videos that all evaluations have, so that a hard prompt which one of them
    left out makes it no better. `totals`: step -> video -> total. Evaluations that share no video, of a run
    that went on with other prompts or seeds, count by their own.
    """
    common = set.intersection(*(set(videos) for videos in totals.values())) if totals else set()
    return {
        step: fmean(total for video, total in videos.items() if not common or video in common)
        for step, videos in totals.items()
    }


def diversity(videos: Sequence[np.ndarray]) -> float:
    """Mean over pairs of the RMS distance between videos uint8 [F, 3, H, W], in units of full scale.

    0 for fewer than two videos.
    """
    pairs = list(combinations([video.astype(np.float32) / 255 for video in videos], 2))
    return fmean(float(np.sqrt(np.mean((a - b) ** 2))) for a, b in pairs) if pairs else 0.0
