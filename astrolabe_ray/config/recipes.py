"""Building blocks that presets share, so that a preset says only what is its own."""

from __future__ import annotations

from astrolabe_ray.config.schema import LearnerConfig, RewardConfig, RolloutConfig, RunConfig

SPRITE_SCORERS = ("tiny_clip", "motion_quality", "image_quality")
"""Text alignment, motion and image quality; none of them needs a download."""


def sprites(name: str, *, num_steps: int, lr: float, num_ranks: int = 1) -> RunConfig:
    """Align the embedded sprites model, which the schema's defaults describe, on two CPU cores.

    Every process reserves a part of a core, because rollouts, scores and training take turns.
    """
    return RunConfig(
        name=name,
        num_steps=num_steps,
        rollout=RolloutConfig(num_cpus=0.5),
        rewards=tuple(RewardConfig(key=key, num_cpus=0.1) for key in SPRITE_SCORERS),
        learner=LearnerConfig(lr=lr, num_ranks=num_ranks, num_cpus=0.5),
    )
