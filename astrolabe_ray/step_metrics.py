"""Numbers of one train step, from what the controller holds: scores, ages, times."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean, pstdev
from typing import Literal

from astrolabe_ray.algorithms.advantages import group_scaled
from astrolabe_ray.types import RolloutGroup, Scores, StepResult


def total_reward(scores: Scores, weights: Mapping[str, float]) -> float:
    """Weighted sum of the raw scores; every reward of the run must be there."""
    return sum(weight * scores.values[key] for key, weight in weights.items())


def training_rewards(
    groups: Sequence[Sequence[Scores]], weights: Mapping[str, float], scale: Literal["raw", "group"]
) -> list[list[float]]:
    """What advantages are computed from, in the shape of `groups`: weighted sums of raw scores, or of scores
    that are centred and divided by their std within their group, reward by reward.

    Of raw sums the reward with the widest range decides; HPSv3 spans several times what VideoReward does.
    """
    if scale == "raw":
        return [[total_reward(scores, weights) for scores in group] for group in groups]
    rows = []
    for group in groups:
        scaled = {key: group_scaled([scores.values[key] for scores in group]) for key in weights}
        rows.append([sum(weights[key] * scaled[key][i] for key in weights) for i in range(len(group))])
    return rows


def step_metrics(
    groups: Sequence[RolloutGroup],
    totals: Sequence[Sequence[float]],
    ages: Sequence[int],
    result: StepResult,
) -> dict[str, float]:
    """One row of `metrics.jsonl`. Rewards are means over rollouts, `_std` over rollouts, too.

    seconds/rollout and seconds/score are summed over the actors and servers, which work in parallel.
    """
    scores = [s for group in groups for s in group.scores]
    rollouts = [r for group in groups for r in group.rollouts]
    flat = [total for row in totals for total in row]
    metrics = {
        "step": float(result.version.step),
        "reward/total": fmean(flat),
        "reward_std/total": pstdev(flat),
        "policy_age/mean": fmean(ages),
        "policy_age/max": float(max(ages)),
        "num_rollouts": float(len(flat)),
        "seconds/rollout": sum(r.generate_s + r.decode_s for r in rollouts),
        "seconds/score": sum(s.seconds for s in scores),
        "seconds/train": result.seconds,
    }
    for key in scores[0].values:
        values = [s.values[key] for s in scores]
        metrics[f"reward/{key}"] = fmean(values)
        metrics[f"reward_std/{key}"] = pstdev(values)
    return metrics | result.metrics


class PhaseClock:
    """Wall time per phase. Example: `with clock.phase("setup"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
