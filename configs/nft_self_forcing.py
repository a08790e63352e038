"""Self-Forcing 1.3B: chunks of three latent frames that see all earlier ones.

python launch.py train --config configs/nft_self_forcing.py:self_forcing_video_hpsv3 --dry-run
"""

from __future__ import annotations

from astrolabe_ray.config.nft_recipes import HPSV3, MULTI, wan
from astrolabe_ray.config.schema import RunConfig


def self_forcing_video_hpsv3_1gpu() -> RunConfig:
    """HPSv3 on 1 GPU."""
    return wan("self_forcing_video_hpsv3_1gpu", "self_forcing", HPSV3, num_gpus=1)


def self_forcing_video_hpsv3_2gpu() -> RunConfig:
    """HPSv3 on 2 GPUs."""
    return wan("self_forcing_video_hpsv3_2gpu", "self_forcing", HPSV3, num_gpus=2)


def self_forcing_video_hpsv3_4gpu() -> RunConfig:
    """HPSv3 on 4 GPUs."""
    return wan("self_forcing_video_hpsv3_4gpu", "self_forcing", HPSV3, num_gpus=4)


def self_forcing_video_multi_reward_1gpu() -> RunConfig:
    """HPSv3 and motion quality on 1 GPU."""
    return wan("self_forcing_video_multi_reward_1gpu", "self_forcing", MULTI, num_gpus=1)


def self_forcing_video_multi_reward_2gpu() -> RunConfig:
    """HPSv3 and motion quality on 2 GPUs."""
    return wan("self_forcing_video_multi_reward_2gpu", "self_forcing", MULTI, num_gpus=2)


def self_forcing_video_multi_reward_4gpu() -> RunConfig:
    """HPSv3 and motion quality on 4 GPUs."""
    return wan("self_forcing_video_multi_reward_4gpu", "self_forcing", MULTI, num_gpus=4)


def self_forcing_video_hpsv3() -> RunConfig:
    """HPSv3 on 8 GPUs."""
    return wan("self_forcing_video_hpsv3", "self_forcing", HPSV3, num_gpus=8)


def self_forcing_video_multi_reward() -> RunConfig:
    """HPSv3 and motion quality on 8 GPUs."""
    return wan("self_forcing_video_multi_reward", "self_forcing", MULTI, num_gpus=8)


def self_forcing_video_hpsv3_16gpu() -> RunConfig:
    """HPSv3 with a stronger KL penalty on 16 GPUs."""
    return wan(
        "self_forcing_video_hpsv3_16gpu", "self_forcing", HPSV3, num_gpus=16, kl_coef=1e-3, eval_every=30
    )


def self_forcing_video_multi_reward_16gpu() -> RunConfig:
    """HPSv3 and motion quality with a stronger KL penalty on 16 GPUs."""
    return wan(
        "self_forcing_video_multi_reward_16gpu",
        "self_forcing",
        MULTI,
        num_gpus=16,
        kl_coef=1e-3,
        eval_every=30,
    )


def self_forcing_video_hpsv3_24gpu() -> RunConfig:
    """HPSv3 with a stronger KL penalty on 24 GPUs."""
    return wan(
        "self_forcing_video_hpsv3_24gpu", "self_forcing", HPSV3, num_gpus=24, kl_coef=1e-3, eval_every=30
    )


def self_forcing_video_multi_reward_24gpu() -> RunConfig:
    """HPSv3 and motion quality with a stronger KL penalty on 24 GPUs."""
    return wan(
        "self_forcing_video_multi_reward_24gpu",
        "self_forcing",
        MULTI,
        num_gpus=24,
        kl_coef=1e-3,
        eval_every=30,
    )


def self_forcing_video_hpsv3_48gpu() -> RunConfig:
    """HPSv3 on 48 GPUs."""
    return wan("self_forcing_video_hpsv3_48gpu", "self_forcing", HPSV3, num_gpus=48)


def self_forcing_video_multi_reward_48gpu() -> RunConfig:
    """HPSv3 and motion quality on 48 GPUs."""
    return wan("self_forcing_video_multi_reward_48gpu", "self_forcing", MULTI, num_gpus=48)
