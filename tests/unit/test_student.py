"""Quantiles of Student's t."""

from __future__ import annotations

import pytest

from astrolabe_ray.report.student import t_quantile

TABLE = {  # as printed in textbooks: degrees of freedom -> t at 0.9, 0.975, 0.995
    1: (3.078, 12.706, 63.657),
    2: (1.886, 4.303, 9.925),
    3: (1.638, 3.182, 5.841),
    4: (1.533, 2.776, 4.604),
    5: (1.476, 2.571, 4.032),
    15: (1.341, 2.131, 2.947),
    16: (1.337, 2.120, 2.921),
    60: (1.296, 2.000, 2.660),
    1000: (1.282, 1.962, 2.581),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_printed_table(freedom: int) -> None:
    """With the normal's 1.96, an interval from four prompts misses the truth one time in seven."""
    for probability, printed in zip((0.9, 0.975, 0.995), TABLE[freedom], strict=True):
        assert t_quantile(probability, freedom) == pytest.approx(printed, abs=6e-4)
