"""Scores of finished videos, whoever made them: as rollouts, for that is what a pool of rewards takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.roles import RewardPool
from astrolabe_ray.types import Blob, PolicyVersion, Rollout

Keep = Callable[[np.ndarray], Blob]
"""Puts an array where the pool's servers can read it; in one process that is nowhere."""


def rollout_of(video: np.ndarray, prompt: str, rewards: RewardPool, keep: Keep) -> Rollout:
    """`video` uint8 [F, 3, H, W] as a rollout with the views that `rewards` want; it cannot be trained on."""
    return Rollout(
        group_id="video",
        index=0,
        prompt=prompt,
        seed=0,
        policy_version=PolicyVersion(),
        actor="",
        latents=None,
        views=tuple(keep(derive_view(video, view)) for view in rewards.views),
    )


async def score_video(rewards: RewardPool, video: np.ndarray, prompt: str, keep: Keep) -> dict[str, float]:
    """Scores by reward key. Raises DataFailure for what can't be judged, InfraFailure as the pool does."""
    (scores,) = await rewards.score([rollout_of(video, prompt, rewards, keep)])
    return scores.values
