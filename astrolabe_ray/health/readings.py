"""What a guard reads: a number, the limit that it must not pass, and what to do when it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from astrolabe_ray.config.schema import Guard


@dataclass(frozen=True)
class Reading:
    """`is_floor`: the value must not fall below the limit; else it must not rise above it."""

    guard: Guard
    value: float
    limit: float
    meaning: str  # of the value
    advice: str
    is_floor: bool = False

    @property
    def is_bad(self) -> bool:
        """A value that is not a number is nobody's alarm: the update was left out, which is counted."""
        if math.isnan(self.value):
            return False
        return self.value < self.limit if self.is_floor else self.value > self.limit
