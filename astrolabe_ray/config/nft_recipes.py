"""Recipes of the published base models: what presets of DiffusionNFT on full-size videos share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.gpu_split import COSTS_1_3B, COSTS_14B, GpuSplit, split_gpus
from astrolabe_ray.config.plan import FRAMES_PER_LATENT_FRAME
from astrolabe_ray.config.schema import (
    AlgorithmConfig,
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    LearnerConfig,
    LoraConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from astrolabe_ray.config.scorer_cards import BY_KEY, scorer_name
from astrolabe_ray.errors import ConfigError

Rewards = dict[str, float]
"""Reward key -> weight."""

HPSV3: Rewards = {"video_hpsv3_local": 1.0}
MQ: Rewards = {"videoalign_mq_score": 1.0}
TA: Rewards = {"videoalign_ta_score": 1.0}
MULTI: Rewards = HPSV3 | MQ

CPUS_PER_PROCESS = 4
LONGEST_WAIT_S = 7200
"""For a step or a score: a step of these sizes takes tens of minutes on few GPUs."""
STALL_S = 9600
"""For a sign of life; more than any single wait."""


@dataclass(frozen=True)
class Scale:
    """What a step samples on a number of GPUs."""

    group_size: int
    num_groups: int
    batch_size: int  # rollouts of one prompt that an actor makes together


@dataclass(frozen=True)
class OnHost:
    """What is kept in host memory, for GPUs that would be too small."""

    base: bool = False  # of the layers that adapters are merged into, in a rollout actor
    text_encoders: bool = False  # of rollout actors and learner ranks


@dataclass(frozen=True)
class TrainWindow:
    """The part of a long video that is trained on, and how much of one is evaluated, in latent frames.

    The rollouts of a group share what is before it.
    """

    frames: int
    start: Literal["last", "random"] | int
    eval_frames: int


SCALES_1_3B = {
    1: Scale(8, 6, 1),
    2: Scale(12, 8, 3),
    4: Scale(24, 8, 3),
    8: Scale(24, 16, 3),
    16: Scale(16, 16, 2),
    24: Scale(24, 48, 4),
    48: Scale(24, 48, 4),
}
"""Up to 8 GPUs with 48 rollouts a GPU."""

SCALES_14B = {
    1: Scale(4, 2, 1),
    2: Scale(8, 2, 1),
    4: Scale(8, 4, 1),
    8: Scale(8, 8, 1),
    16: Scale(16, 16, 1),
    24: Scale(24, 24, 1),
    48: Scale(16, 48, 1),
}
"""Up to 8 GPUs with 8 rollouts a GPU."""


def wan(name: str, base_model: str, rewards: Rewards, *, num_gpus: int, **changes: Any) -> RunConfig:
    """Align a 1.3B model; `changes` are those of `_full_size`."""
    scale = _scale(name, SCALES_1_3B, num_gpus)
    split = split_gpus(num_gpus, COSTS_1_3B, tuple(rewards))
    on_host = OnHost(text_encoders=num_gpus == 1)
    return _full_size(name, base_model, rewards, scale, split, on_host, zero_stage=1, **changes)


def krea(name: str, rewards: Rewards, *, num_gpus: int, **changes: Any) -> RunConfig:
    """Align the 14B model: its weights are split over the learner ranks (ZeRO 3), and text
    encoders and the base of the merged layers stay off the GPUs.
    """
    scale = _scale(name, SCALES_14B, num_gpus)
    split = split_gpus(num_gpus, COSTS_14B, tuple(rewards))
    on_host = OnHost(base=True, text_encoders=True)
    return _full_size(name, "krea14b", rewards, scale, split, on_host, zero_stage=3, **changes)


def _scale(name: str, scales: dict[int, Scale], num_gpus: int) -> Scale:
    """Raises ConfigError for a number of GPUs that nobody has chosen a step for."""
    if num_gpus not in scales:
        raise ConfigError(
            f"{name}: there is no scale for {num_gpus} GPUs; use one of {', '.join(map(str, scales))}, or "
            "add a line to the scales in astrolabe_ray/config/nft_recipes.py."
        )
    return scales[num_gpus]


def _full_size(
    name: str,
    base_model: str,
    rewards: Rewards,
    scale: Scale,
    split: GpuSplit,
    on_host: OnHost,
    *,
    zero_stage: Literal[1, 3],
    lr: float = 1e-5,
    kl_coef: float = 1e-4,
    eval_every: int = 10,
    num_frames: int = 81,
    lora_init: bool = False,
    main_reward: str | None = None,
    window: TrainWindow | None = None,
) -> RunConfig:
    """Values of the Astrolabe release wherever they mean something here.

    `num_frames` of pixels are rounded down to whole chunks of latent frames; `lora_init` starts from the
    LoRA that the base model's publishers sample it with; with `main_reward` the KL penalty is for samples
    that the rewards disagree on; with `window` only a part of each video is scored and trained on.

    The release's batch per GPU is `rollout.batch_size` here, its batches per epoch follow from
    `rollout.num_groups`, which counts distinct prompts, and its guidance, noise level, solver and timestep
    fraction do nothing for distilled models. Different by intention: rollouts may be one policy old, so
    that the stages overlap (`rollout.max_policy_age=0` takes turns), and an evaluation is 2 videos of 240
    prompts at every scale, so that runs of different scale compare.
    """
    model = BASE_MODELS[base_model]
    return RunConfig(
        name=name,
        seed=42,
        num_steps=100_000,
        model=model.model_config(
            num_latent_frames=_whole_chunks(num_frames, model.config.chunk_frames),
            lora_init=model.lora if lora_init else None,
            prompt_cache="prompt_cache",
        ),
        lora=LoraConfig(rank=256, alpha=256),
        data=DataConfig(
            train_prompts="dataset/vidprom/train.txt", heldout_prompts="dataset/vidprom/test.txt"
        ),
        rollout=_rollout(scale, split, on_host, window),
        rewards=_rewards(rewards, split),
        algorithm=_algorithm(kl_coef, main_reward, window),
        learner=_learner(split, on_host, zero_stage, lr),
        evaluation=EvaluationConfig(
            num_prompts=240,
            rollouts_per_prompt=2,
            every_steps=eval_every,
            num_latent_frames=None if window is None else window.eval_frames,
        ),
        cluster=ClusterConfig(placement_timeout_s=600, stall_timeout_s=STALL_S),
    )


def _whole_chunks(num_frames: int, chunk_frames: int) -> int:
    """Latent frames of the whole chunks, one at least, that `num_frames` of pixels hold.

    Example: 81 frames are 21 latent frames, of which chunks of 2 make 20.
    """
    latent_frames = (num_frames - 1) // FRAMES_PER_LATENT_FRAME + 1
    return max(1, latent_frames // chunk_frames) * chunk_frames


def _rollout(scale: Scale, split: GpuSplit, on_host: OnHost, window: TrainWindow | None) -> RolloutConfig:
    return RolloutConfig(
        num_groups=scale.num_groups,
        group_size=scale.group_size,
        batch_size=scale.batch_size,
        group_sampling="sequence" if window is None else "clip",
        min_actors=split.num_actors,
        max_actors=split.num_actors,
        max_policy_age=1,
        num_cpus=CPUS_PER_PROCESS,
        num_gpus=split.gpus_per_actor,
        base_on_host=on_host.base,
        text_encoder_on_host=on_host.text_encoders,
        request_timeout_s=LONGEST_WAIT_S,
    )


def _rewards(rewards: Rewards, split: GpuSplit) -> tuple[RewardConfig, ...]:
    return tuple(
        RewardConfig(
            key=key,
            weight=weight,
            min_replicas=share.num_replicas,
            max_replicas=share.num_replicas,
            num_cpus=CPUS_PER_PROCESS * share.num_gpus,
            num_gpus=share.num_gpus,
            max_batch_size=BY_KEY[key].batch_size,
            request_timeout_s=LONGEST_WAIT_S,
        )
        for key, weight in rewards.items()
        for share in [split.servers[scorer_name(key)]]
    )


def _algorithm(kl_coef: float, main_reward: str | None, window: TrainWindow | None) -> AlgorithmConfig:
    return AlgorithmConfig(
        nft_beta=0.1,
        kl_coef=kl_coef,
        kl_samples="all" if main_reward is None else "disagreeing",
        main_reward=main_reward,
        adv_clip_max=5.0,
        advantage_std="global",
        old_policy_decay="linear",
        ema_decay=0.9,
        train_window_frames=None if window is None else window.frames,
        window_start="last" if window is None else window.start,
    )


def _learner(split: GpuSplit, on_host: OnHost, zero_stage: Literal[1, 3], lr: float) -> LearnerConfig:
    return LearnerConfig(
        num_ranks=split.num_ranks,
        zero_stage=zero_stage,
        micro_batch_size=1,
        lr=lr,
        adam_betas=(0.9, 0.999),
        weight_decay=1e-4,
        max_grad_norm=1.0,
        gradient_checkpointing=True,
        keep_attention=zero_stage == 1 and not on_host.text_encoders,  # where there is room for it
        num_cpus=CPUS_PER_PROCESS,
        num_gpus=split.gpus_per_rank,
        text_encoder_on_host=on_host.text_encoders,
        step_timeout_s=LONGEST_WAIT_S,
    )
