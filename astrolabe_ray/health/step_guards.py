"""Guards on every step: an update that does nothing, one that runs away, layers that do not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from astrolabe_ray.config.schema import HealthConfig
from astrolabe_ray.health.readings import Reading

WEAKEST_GRADIENT, ADAPTER_NORM = "grad_norm_weakest/", "adapter_norm/"
MIN_MEDIAN_STEPS = 5
"""Gradient norms that a median needs before a norm is compared with it."""


def pull(advantages: Sequence[Sequence[float]], *, adv_clip_max: float) -> float:
    """Mean of |2 r - 1| over the samples, where r is a sample's NFT weight, in [0, 1].

    Where the trained policy is the one that sampled, both targets of the loss are the same, and its gradient
    is (2 r - 1) times theirs: with a pull of 0 a step changes nothing, whatever the loss says.
    """
    return fmean(min(abs(a), adv_clip_max) / adv_clip_max for group in advantages for a in group)


def step_readings(
    row: Mapping[str, float],
    limits: HealthConfig,
    *,
    num_groups: int,
    first_norms: Mapping[str, float],
    recent_gradients: Sequence[float],
) -> list[Reading]:
    """Readings of a step's metrics, of those that it has and that have a limit.

    `first_norms`: of the adapters, by metric. `recent_gradients`: norms of the steps before.
    """
    readings: list[Reading] = []
    if limits.min_pull is not None and "health/pull" in row:
        advice = "rewards hardly differ within a group: look at reward_std, or raise rollout.group_size"
        what = "mean pull of a sample on the policy"
        readings.append(Reading("pull", row["health/pull"], limits.min_pull, what, advice, is_floor=True))
    if limits.max_zero_groups is not None and "advantage/zero_std_groups" in row:
        share = row["advantage/zero_std_groups"] / num_groups
        what, advice = "share of groups with equal rewards", "they teach nothing: look at the scorers"
        readings.append(Reading("zero_groups", share, limits.max_zero_groups, what, advice))
    if limits.max_unmoved is not None and "health/unmoved" in row:
        what = "share of adapter weights that the step left bitwise as they were"
        advice = "raise learner.lr, or look for layers that are not connected"
        readings.append(Reading("unmoved", row["health/unmoved"], limits.max_unmoved, what, advice))
    return (
        readings
        + _gradient_readings(row, limits, recent_gradients)
        + _norm_readings(row, limits, first_norms)
    )


def _gradient_readings(
    row: Mapping[str, float], limits: HealthConfig, recent: Sequence[float]
) -> list[Reading]:
    readings: list[Reading] = []
    modules = {name: value for name, value in row.items() if name.startswith(WEAKEST_GRADIENT)}
    if limits.min_module_gradient is not None and modules and row["grad_norm"] > 0:
        name = min(modules, key=lambda name: modules[name])
        kind = name.removeprefix(WEAKEST_GRADIENT)
        what = f"gradient norm of {kind} in the block where it is smallest over that of the whole adapter"
        share, advice = (
            modules[name] / row["grad_norm"],
            "this layer does not learn: is its adapter connected?",
        )
        readings.append(
            Reading("dead_modules", share, limits.min_module_gradient, what, advice, is_floor=True)
        )
    if limits.max_gradient_growth is not None and len(recent) >= MIN_MEDIAN_STEPS and "grad_norm" in row:
        growth = row["grad_norm"] / max(median(recent), 1e-30)
        what, advice = (
            "gradient norm over its median",
            "lower learner.lr, or look at the rewards of this step",
        )
        readings.append(Reading("gradient_growth", growth, limits.max_gradient_growth, what, advice))
    return readings


def _norm_readings(
    row: Mapping[str, float], limits: HealthConfig, first: Mapping[str, float]
) -> list[Reading]:
    growth = {name: row[name] / first[name] for name in first if name in row}
    if limits.max_norm_growth is None or not growth:
        return []
    name = max(growth, key=lambda name: growth[name])
    what = f"norm of the {name.removeprefix(ADAPTER_NORM)} adapter over its first one"
    advice = "the policy runs away: lower learner.lr, or raise algorithm.kl_coef"
    return [Reading("norm_growth", growth[name], limits.max_norm_growth, what, advice)]
