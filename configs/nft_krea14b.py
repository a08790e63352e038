"""Krea Realtime 14B: chunks of three latent frames that see all earlier ones; weights split over the ranks.

python launch.py train --config configs/nft_krea14b.py:krea14b_video_hpsv3 --dry-run
"""

from __future__ import annotations

from astrolabe_ray.config.nft_recipes import HPSV3, MULTI, krea
from astrolabe_ray.config.schema import RunConfig


def krea14b_video_hpsv3_1gpu() -> RunConfig:
    """HPSv3 on 1 GPU."""
    return krea("krea14b_video_hpsv3_1gpu", HPSV3, num_gpus=1, eval_every=30)


def krea14b_video_multi_reward_1gpu() -> RunConfig:
    """HPSv3 and motion quality on 1 GPU."""
    return krea("krea14b_video_multi_reward_1gpu", MULTI, num_gpus=1, eval_every=30)


def krea14b_video_hpsv3_2gpu() -> RunConfig:
    """HPSv3 on 2 GPUs."""
    return krea("krea14b_video_hpsv3_2gpu", HPSV3, num_gpus=2, eval_every=30)


def krea14b_video_multi_reward_2gpu() -> RunConfig:
    """HPSv3 and motion quality on 2 GPUs."""
    return krea("krea14b_video_multi_reward_2gpu", MULTI, num_gpus=2, eval_every=30)


def krea14b_video_hpsv3_4gpu() -> RunConfig:
    """HPSv3 on 4 GPUs."""
    return krea("krea14b_video_hpsv3_4gpu", HPSV3, num_gpus=4, eval_every=30)


def krea14b_video_multi_reward_4gpu() -> RunConfig:
    """HPSv3 and motion quality on 4 GPUs."""
    return krea("krea14b_video_multi_reward_4gpu", MULTI, num_gpus=4, eval_every=30)


def krea14b_video_hpsv3() -> RunConfig:
    """HPSv3 on 8 GPUs."""
    return krea("krea14b_video_hpsv3", HPSV3, num_gpus=8, eval_every=30)


def krea14b_video_multi_reward() -> RunConfig:
    """HPSv3 and motion quality on 8 GPUs."""
    return krea("krea14b_video_multi_reward", MULTI, num_gpus=8, eval_every=30)


def krea14b_video_hpsv3_16gpu() -> RunConfig:
    """HPSv3 on 16 GPUs."""
    return krea("krea14b_video_hpsv3_16gpu", HPSV3, num_gpus=16, eval_every=30)


def krea14b_video_multi_reward_16gpu() -> RunConfig:
    """HPSv3 and motion quality on 16 GPUs."""
    return krea("krea14b_video_multi_reward_16gpu", MULTI, num_gpus=16, eval_every=30)


def krea14b_video_hpsv3_24gpu() -> RunConfig:
    """HPSv3 on 24 GPUs."""
    return krea("krea14b_video_hpsv3_24gpu", HPSV3, num_gpus=24, eval_every=30)


def krea14b_video_multi_reward_24gpu() -> RunConfig:
    """HPSv3 and motion quality on 24 GPUs."""
    return krea("krea14b_video_multi_reward_24gpu", MULTI, num_gpus=24, eval_every=30)


def krea14b_video_hpsv3_48gpu() -> RunConfig:
    """HPSv3 on 48 GPUs."""
    return krea("krea14b_video_hpsv3_48gpu", HPSV3, num_gpus=48, eval_every=30)


def krea14b_video_multi_reward_48gpu() -> RunConfig:
    """HPSv3 and motion quality on 48 GPUs."""
    return krea("krea14b_video_multi_reward_48gpu", MULTI, num_gpus=48, eval_every=30)
