"""Advantages of a batch of groups: rewards centred within their group, divided by one std.

DiffusionNFT (arXiv 2509.16117, section 3.3) with the released code's constants. Plain Python floats:
float64 throughout, and the controller needs no torch for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

STD_EPS = 1e-4
AdvantageMode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def group_advantages(
    rewards: Sequence[Sequence[float]],
    *,
    std: Literal["global", "group"],
    beside: Sequence[Sequence[float]] | None = None,
) -> tuple[list[list[float]], dict[str, float]]:
    """Advantages in the shape of `rewards` (groups x rollouts), and statistics of the batch.

    advantage = (reward - mean of its group) / (std + 1e-4), with the population std of all rewards
    of the batch (`global`) or of the group (`group`). `beside[g]`: rewards that count for the mean and std of
    group g and get no advantage, of the same prompt in other groups or earlier steps. Where no group has
    anything to compare with, all are compared with each other. A group whose rewards are all equal teaches
    nothing: its advantages are exactly 0 and it is counted.
    Raises ValueError for an empty batch or group and for a reward that is not finite.
    """
    _check(rewards)
    flat = [reward for group in rewards for reward in group]
    peers = [[*group, *more] for group, more in zip(rewards, beside or [()] * len(rewards), strict=True)]
    if all(len(group) == 1 for group in peers):
        peers = [flat] * len(rewards)
    group_stds = [population_std(group) for group in peers]
    batch_std = population_std(flat)
    advantages = []
    for group, compared, group_std in zip(rewards, peers, group_stds, strict=True):
        scale = (batch_std if std == "global" else group_std) + STD_EPS
        advantages.append([difference / scale for difference in _centred(group, compared)])
    num_equal = sum(group_std == 0 for group_std in group_stds)
    stats = {
        "advantage/reward_std": batch_std,
        "advantage/group_std_mean": _mean(group_stds),
        "advantage/zero_std_groups": float(num_equal),
        "advantage/abs_max": max(abs(a) for group in advantages for a in group),
    }
    return advantages, stats


def centred(group: Sequence[float], beside: Sequence[float] = ()) -> list[float]:
    """Rewards minus their peers' mean, all 0 where all are equal: what `group_advantages` divides by a std.

    It needs no other group. `beside` as there, for this one group.
    """
    return _centred(group, [*group, *beside])


def _centred(group: Sequence[float], peers: Sequence[float]) -> list[float]:
    mean = _mean(peers)
    return [reward - mean if population_std(peers) > 0 else 0.0 for reward in group]


def shaped(advantages: Sequence[float], mode: AdvantageMode) -> list[float]:
    """What of the advantages a policy is trained on, as DiffusionNFT's code has it (`adv_mode`).

    all: A. positive_only: max(A, 0). negative_only: min(A, 0). one_only: 1 where A > 0, else 0. binary: the
    sign of A. Signs survive clipping, so it does not matter which comes first.
    """
    return [_SHAPES[mode](advantage) for advantage in advantages]


_SHAPES: dict[AdvantageMode, Callable[[float], float]] = {
    "all": lambda a: a,
    "positive_only": lambda a: max(a, 0.0),
    "negative_only": lambda a: min(a, 0.0),
    "one_only": lambda a: float(a > 0),
    "binary": lambda a: float((a > 0) - (a < 0)),
}


def group_scaled(values: Sequence[float]) -> list[float]:
    """Centred on their mean and divided by their std (+ 1e-4); all 0 where all are equal."""
    std, mean = population_std(values), _mean(values)
    return [(value - mean) / (std + STD_EPS) if std > 0 else 0.0 for value in values]


def population_std(values: Sequence[float]) -> float:
    """sqrt(mean((x - mean)^2)); exactly 0 when all values are equal (a rounded mean would leave dust)."""
    if min(values) == max(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values]))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _check(rewards: Sequence[Sequence[float]]) -> None:
    if not rewards or not all(rewards):
        raise ValueError(
            f"advantages need at least one reward in every group, got sizes {[*map(len, rewards)]}"
        )
    for number, group in enumerate(rewards):
        for index, reward in enumerate(group):
            if not math.isfinite(reward):
                raise ValueError(f"reward {index} of group {number} is {reward}; rewards must be finite")
