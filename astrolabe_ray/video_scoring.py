"""Scores of finished videos, whoever made them: as rollouts, for that is what a pool of rewards takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.roles import RewardPool
from astrolabe_ray.types import Blob, PolicyVersion, Rollout

Keep = Callable[[np.ndarray], Blob]
"""Puts an array where the pool's servers can read it; in one process that is nowhere."""


def rollouts_of(video: np.ndarray, prompt: str, pools: Sequence[RewardPool], keep: Keep) -> list[Rollout]:
    """`video` uint8 [F, 3, H, W] as a rollout for each pool, with the views that it wants.

    They cannot be trained on. A view that several pools want is kept once.
    """
    wanted = dict.fromkeys(view for pool in pools for view in pool.views)
    kept = {view: keep(derive_view(video, view)) for view in wanted}
    return [
        Rollout(
            group_id="video",
            index=0,
            prompt=prompt,
            seed=0,
            policy_version=PolicyVersion(),
            actor="",
            latents=None,
            views=tuple(kept[view] for view in pool.views),
        )
        for pool in pools
    ]


async def score_video(rewards: RewardPool, video: np.ndarray, prompt: str, keep: Keep) -> dict[str, float]:
    """Scores by reward key. Raises DataFailure for what can't be judged, InfraFailure as the pool does."""
    (scores,) = await rewards.score(rollouts_of(video, prompt, [rewards], keep))
    return scores.values
