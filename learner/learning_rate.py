"""Learning rate of a step, from the config."""

from __future__ import annotations

from astrolabe_ray.algorithms.lr_schedule import lr_factor
from astrolabe_ray.config.schema import LearnerConfig


def learning_rate(config: LearnerConfig, step: int) -> float:
    """Of step `step` (from 0)."""
    return config.lr * lr_factor(
        step,
        schedule=config.lr_schedule,
        warmup_steps=config.lr_warmup_steps,
        decay_steps=config.lr_decay_steps,
        final_share=config.lr_final_share,
    )
