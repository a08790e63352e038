"""Causal-Forcing 1.3B, in chunks and frame by frame; presets keep the spelling of the release, casual.

python launch.py train --config configs/nft_casual_forcing.py:casual_forcing_video_hpsv3 --dry-run
"""

from __future__ import annotations

from astrolabe_ray.config.nft_recipes import HPSV3, MULTI, TA, wan
from astrolabe_ray.config.schema import RunConfig


def casual_forcing_video_hpsv3_1gpu() -> RunConfig:
    """HPSv3 on 1 GPU."""
    return wan("casual_forcing_video_hpsv3_1gpu", "causal_forcing", HPSV3, num_gpus=1, eval_every=30)


def casual_forcing_video_multi_reward_1gpu() -> RunConfig:
    """HPSv3 and motion quality with twice the learning rate on 1 GPU."""
    return wan(
        "casual_forcing_video_multi_reward_1gpu", "causal_forcing", MULTI, num_gpus=1, lr=2e-5, eval_every=30
    )


def casual_forcing_video_hpsv3_2gpu() -> RunConfig:
    """HPSv3 on 2 GPUs."""
    return wan("casual_forcing_video_hpsv3_2gpu", "causal_forcing", HPSV3, num_gpus=2, eval_every=30)


def casual_forcing_video_multi_reward_2gpu() -> RunConfig:
    """HPSv3 and motion quality with twice the learning rate on 2 GPUs."""
    return wan(
        "casual_forcing_video_multi_reward_2gpu", "causal_forcing", MULTI, num_gpus=2, lr=2e-5, eval_every=30
    )


def casual_forcing_video_hpsv3_4gpu() -> RunConfig:
    """HPSv3 on 4 GPUs."""
    return wan("casual_forcing_video_hpsv3_4gpu", "causal_forcing", HPSV3, num_gpus=4, eval_every=30)


def casual_forcing_video_multi_reward_4gpu() -> RunConfig:
    """HPSv3 and motion quality with twice the learning rate on 4 GPUs."""
    return wan(
        "casual_forcing_video_multi_reward_4gpu", "causal_forcing", MULTI, num_gpus=4, lr=2e-5, eval_every=30
    )


def casual_forcing_video_hpsv3() -> RunConfig:
    """HPSv3 on 8 GPUs."""
    return wan("casual_forcing_video_hpsv3", "causal_forcing", HPSV3, num_gpus=8, eval_every=30)


def casual_forcing_video_multi_reward() -> RunConfig:
    """HPSv3 and motion quality with twice the learning rate on 8 GPUs."""
    return wan(
        "casual_forcing_video_multi_reward", "causal_forcing", MULTI, num_gpus=8, lr=2e-5, eval_every=30
    )


def casual_forcing_video_hpsv3_16gpu() -> RunConfig:
    """HPSv3 on 16 GPUs."""
    return wan("casual_forcing_video_hpsv3_16gpu", "causal_forcing", HPSV3, num_gpus=16)


def casual_forcing_video_multi_reward_16gpu() -> RunConfig:
    """HPSv3 and motion quality on 16 GPUs."""
    return wan("casual_forcing_video_multi_reward_16gpu", "causal_forcing", MULTI, num_gpus=16)


def casual_forcing_video_hpsv3_24gpu() -> RunConfig:
    """HPSv3 on 24 GPUs."""
    return wan("casual_forcing_video_hpsv3_24gpu", "causal_forcing", HPSV3, num_gpus=24)


def casual_forcing_video_hpsv3_48gpu() -> RunConfig:
    """HPSv3 on 48 GPUs."""
    return wan("casual_forcing_video_hpsv3_48gpu", "causal_forcing", HPSV3, num_gpus=48, eval_every=30)


def casual_forcing_video_multireward_48gpu() -> RunConfig:
    """HPSv3 and motion quality with a stronger KL penalty on 48 GPUs."""
    return wan(
        "casual_forcing_video_multireward_48gpu",
        "causal_forcing",
        MULTI,
        num_gpus=48,
        kl_coef=5e-4,
        eval_every=30,
    )


def casual_forcing_video_multi_reward_48gpu() -> RunConfig:
    """HPSv3 and motion quality with a stronger KL penalty on 48 GPUs."""
    return wan(
        "casual_forcing_video_multi_reward_48gpu",
        "causal_forcing",
        MULTI,
        num_gpus=48,
        kl_coef=5e-4,
        eval_every=30,
    )


def casual_forcing_video_ta_48gpu() -> RunConfig:
    """Text alignment with twice the learning rate on 48 GPUs."""
    return wan("casual_forcing_video_ta_48gpu", "causal_forcing", TA, num_gpus=48, lr=2e-5, eval_every=30)


def casual_forcing_video_hpsv3_mq_ta_48gpu() -> RunConfig:
    """HPSv3, motion quality and text alignment on 48 GPUs."""
    return wan(
        "casual_forcing_video_hpsv3_mq_ta_48gpu", "causal_forcing", MULTI | TA, num_gpus=48, eval_every=30
    )


def casual_forcing_video_hpsv3_ta_48gpu() -> RunConfig:
    """Text alignment and a tenth of HPSv3 on 48 GPUs."""
    return wan(
        "casual_forcing_video_hpsv3_ta_48gpu",
        "causal_forcing",
        {"video_hpsv3_local": 0.1} | TA,
        num_gpus=48,
        eval_every=30,
    )


def casual_forcing_framewise_video_hpsv3() -> RunConfig:
    """HPSv3 frame by frame on 8 GPUs."""
    return wan(
        "casual_forcing_framewise_video_hpsv3", "causal_forcing_framewise", HPSV3, num_gpus=8, eval_every=30
    )


def casual_forcing_framewise_video_multi_reward() -> RunConfig:
    """HPSv3 and motion quality frame by frame on 8 GPUs."""
    return wan(
        "casual_forcing_framewise_video_multi_reward",
        "causal_forcing_framewise",
        MULTI,
        num_gpus=8,
        eval_every=30,
    )
