"""Student's t distribution for whole degrees of freedom: how wide an interval from few samples must be."""

from __future__ import annotations

import math


def t_quantile(probability: float, freedom: int) -> float:
    """The t that a variable with `freedom` degrees of freedom stays below with `probability` in [0.5, 1).

    Example: `t_quantile(0.975, 3)` is 3.182.
    """
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if _within(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    is_odd = freedom % 2
    term = total = (math.cos(angle) if freedom > 1 else 0.0) if is_odd else 1.0
    for k in range(2 if is_odd else 1, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * k / (k + 1)
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
