"""Learning rate over a run: a function of the step alone, so that a resumed run needs no state for it."""

from __future__ import annotations

import math

from astrolabe_ray.config.schema import LearnerConfig


def lr_factor(config: LearnerConfig, step: int) -> float:
    """Share of `learner.lr` at step 0, 1, ...

    Warm-up: (step + 1) / (warm-up steps + 1). Then 1, or a line or half a cosine down to the final share.
    """
    warmup, final = config.lr_warmup_steps, config.lr_final_share
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    done = min((step - warmup) / config.lr_decay_steps, 1.0)
    left = 1 - done if config.lr_schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return final + (1 - final) * left
