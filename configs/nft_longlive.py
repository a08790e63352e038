"""LongLive 1.3B: long videos with a window of 12 latent frames, the first 3 always in sight.

python launch.py train --config configs/nft_longlive.py:longlive_video_hpsv3 --dry-run
"""

from __future__ import annotations

from astrolabe_ray.config.nft_recipes import HPSV3, MQ, MULTI, TrainWindow, wan
from astrolabe_ray.config.schema import RunConfig


def longlive_video_hpsv3_1gpu() -> RunConfig:
    """HPSv3 on 1 GPU."""
    return wan("longlive_video_hpsv3_1gpu", "longlive", HPSV3, num_gpus=1)


def longlive_video_multi_reward_1gpu() -> RunConfig:
    """HPSv3 and motion quality on 1 GPU."""
    return wan("longlive_video_multi_reward_1gpu", "longlive", MULTI, num_gpus=1)


def longlive_video_hpsv3_2gpu() -> RunConfig:
    """HPSv3 on 2 GPUs."""
    return wan("longlive_video_hpsv3_2gpu", "longlive", HPSV3, num_gpus=2)


def longlive_video_multi_reward_2gpu() -> RunConfig:
    """HPSv3 and motion quality on 2 GPUs."""
    return wan("longlive_video_multi_reward_2gpu", "longlive", MULTI, num_gpus=2)


def longlive_video_hpsv3_4gpu() -> RunConfig:
    """HPSv3 on 4 GPUs."""
    return wan("longlive_video_hpsv3_4gpu", "longlive", HPSV3, num_gpus=4)


def longlive_video_multi_reward_4gpu() -> RunConfig:
    """HPSv3 and motion quality on 4 GPUs."""
    return wan("longlive_video_multi_reward_4gpu", "longlive", MULTI, num_gpus=4)


def longlive_video_hpsv3() -> RunConfig:
    """HPSv3 on 8 GPUs."""
    return wan("longlive_video_hpsv3", "longlive", HPSV3, num_gpus=8)


def longlive_video_multi_reward() -> RunConfig:
    """HPSv3 and motion quality on 8 GPUs."""
    return wan("longlive_video_multi_reward", "longlive", MULTI, num_gpus=8)


def longlive_video_mq() -> RunConfig:
    """Motion quality on 8 GPUs."""
    return wan("longlive_video_mq", "longlive", MQ, num_gpus=8, eval_every=20)


def longlive_video_long() -> RunConfig:
    """HPSv3 on 21 latent frames somewhere in videos of 237 frames on 8 GPUs.

    A group shares the frames before its window, which is drawn anew for each group.
    """
    return wan(
        "longlive_video_long",
        "longlive",
        HPSV3,
        num_gpus=8,
        num_frames=240,
        window=TrainWindow(frames=21, start="random", eval_frames=60),
    )


def longlive_video_hpsv3_with_lora_init() -> RunConfig:
    """HPSv3 from LongLive's LoRA on 8 GPUs."""
    return wan("longlive_video_hpsv3_with_lora_init", "longlive", HPSV3, num_gpus=8, lora_init=True)


def longlive_video_multi_reward_with_lora_init() -> RunConfig:
    """HPSv3 and motion quality from LongLive's LoRA on 8 GPUs."""
    return wan("longlive_video_multi_reward_with_lora_init", "longlive", MULTI, num_gpus=8, lora_init=True)


def longlive_video_hpsv3_16gpu() -> RunConfig:
    """HPSv3 on 16 GPUs."""
    return wan("longlive_video_hpsv3_16gpu", "longlive", HPSV3, num_gpus=16)


def longlive_video_mq_16gpu() -> RunConfig:
    """Motion quality on 16 GPUs."""
    return wan("longlive_video_mq_16gpu", "longlive", MQ, num_gpus=16, eval_every=20)


def longlive_video_multi_reward_16gpu() -> RunConfig:
    """HPSv3 and motion quality on 16 GPUs."""
    return wan("longlive_video_multi_reward_16gpu", "longlive", MULTI, num_gpus=16)


def longlive_video_hpsv3_with_lora_init_16gpu() -> RunConfig:
    """HPSv3 from LongLive's LoRA on 16 GPUs."""
    return wan("longlive_video_hpsv3_with_lora_init_16gpu", "longlive", HPSV3, num_gpus=16, lora_init=True)


def longlive_video_hpsv3_24gpu() -> RunConfig:
    """HPSv3 on 24 GPUs."""
    return wan("longlive_video_hpsv3_24gpu", "longlive", HPSV3, num_gpus=24)


def longlive_video_multi_reward_24gpu() -> RunConfig:
    """HPSv3 and motion quality on 24 GPUs."""
    return wan("longlive_video_multi_reward_24gpu", "longlive", MULTI, num_gpus=24)


def longlive_video_hpsv3_with_lora_init_24gpu() -> RunConfig:
    """HPSv3 from LongLive's LoRA on 24 GPUs."""
    return wan("longlive_video_hpsv3_with_lora_init_24gpu", "longlive", HPSV3, num_gpus=24, lora_init=True)


def longlive_video_hpsv3_48gpu() -> RunConfig:
    """HPSv3 on 48 GPUs."""
    return wan("longlive_video_hpsv3_48gpu", "longlive", HPSV3, num_gpus=48, eval_every=30)


def longlive_video_multireward_48gpu() -> RunConfig:
    """HPSv3 and motion quality on 48 GPUs."""
    return wan("longlive_video_multireward_48gpu", "longlive", MULTI, num_gpus=48, eval_every=30)


def longlive_video_multi_reward_48gpu() -> RunConfig:
    """HPSv3 and motion quality on 48 GPUs."""
    return wan("longlive_video_multi_reward_48gpu", "longlive", MULTI, num_gpus=48, eval_every=30)


def longlive_video_hpsv3_with_lora_init_48gpu() -> RunConfig:
    """HPSv3 from LongLive's LoRA on 48 GPUs."""
    return wan(
        "longlive_video_hpsv3_with_lora_init_48gpu",
        "longlive",
        HPSV3,
        num_gpus=48,
        lora_init=True,
        eval_every=30,
    )


def longlive_video_hpsv3_streaming_with_lora_init() -> RunConfig:
    """HPSv3 on the second 21 latent frames of long videos, from LongLive's LoRA on 8 GPUs.

    As the release means it: always the same window, scored by itself, behind frames that are made once for
    a group; evaluation on 237 frames. With
    `--config.algorithm.window_start=random` the window is drawn from all 957 frames for each group.
    """
    return wan(
        "longlive_video_hpsv3_streaming_with_lora_init",
        "longlive",
        HPSV3,
        num_gpus=8,
        num_frames=960,
        lora_init=True,
        eval_every=30,
        window=TrainWindow(frames=21, start=21, eval_frames=60),
    )


def longlive_video_hpsv3_gardo() -> RunConfig:
    """HPSv3 and motion quality with KL where they disagree on 8 GPUs."""
    return wan("longlive_video_hpsv3_gardo", "longlive", MULTI, num_gpus=8, main_reward="video_hpsv3_local")


def longlive_video_hpsv3_gardo_24gpu() -> RunConfig:
    """HPSv3 and motion quality with KL where they disagree on 24 GPUs."""
    return wan(
        "longlive_video_hpsv3_gardo_24gpu", "longlive", MULTI, num_gpus=24, main_reward="video_hpsv3_local"
    )


def longlive_video_hpsv3_gardo_48gpu() -> RunConfig:
    """HPSv3 and motion quality with KL where they disagree on 48 GPUs."""
    return wan(
        "longlive_video_hpsv3_gardo_48gpu",
        "longlive",
        MULTI,
        num_gpus=48,
        main_reward="video_hpsv3_local",
        eval_every=30,
    )
