"""Learning rate over a run: a function of the step alone, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from typing import Literal


def lr_factor(
    step: int,
    *,
    schedule: Literal["constant", "linear", "cosine"],
    warmup_steps: int,
    decay_steps: int,
    final_share: float,
) -> float:
    """Share of the learning rate at step 0, 1, ...

    (step + 1) / (warmup_steps + 1) in the warm-up; then 1, or a line or half a cosine down to `final_share`.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    done = min((step - warmup_steps) / decay_steps, 1.0)
    left = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return final_share + (1 - final_share) * left
