"""A run of the same shape for two CPU cores: the embedded model and scorers in place of the real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.plan import FRAMES_PER_LATENT_FRAME
from astrolabe_ray.config.schema import (
    AlgorithmConfig,
    DataConfig,
    EvaluationConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from astrolabe_ray.config.scorer_cards import BY_KEY
from astrolabe_ray.errors import ConfigError

TINY_SCORERS = ("image_quality", "motion_quality", "tiny_clip")
LORA_RANK = 4


def shrink(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The small run, and a line for each thing that it can't be true to.

    Chunks, sink, schedule, algorithm, weights of the rewards, the ZeRO stage and all that is not a size
    stay. Raises ConfigError for more rewards than there are embedded scorers.
    """
    stand_ins = _stand_ins([reward.key for reward in config.rewards])
    model = _model(config.model)
    small = config.model_copy(
        update={
            "num_steps": min(config.num_steps, 4),
            "model": model,
            "lora": _lora(config.lora),
            "data": DataConfig(),
            "rollout": _rollout(config.rollout),
            "rewards": tuple(_reward(reward, stand_ins[reward.key]) for reward in config.rewards),
            "algorithm": _algorithm(config.algorithm, config.model, model, stand_ins),
            "learner": _learner(config.learner),
            "evaluation": _evaluation(config.evaluation, model.chunk_frames),
            "checkpoint": config.checkpoint.model_copy(update={"every_steps": 1}),
        }
    )
    return RunConfig.model_validate(small.model_dump()), _notes(config, model, stand_ins)


def _model(real: ModelConfig) -> ModelConfig:
    """As many chunks as the square root of the real number, so that long videos stay longer."""
    num_latent_frames = _fewer(real.num_latent_frames, real.chunk_frames)
    window = real.window_frames
    if window is not None:
        scaled = round(window * num_latent_frames / real.num_latent_frames)
        window = max(real.sink_frames + real.chunk_frames, scaled)
    kept = (
        "chunk_frames",
        "sink_frames",
        "denoising_steps",
        "timestep_shift",
        "context_timestep",
        "rope",
        "attention",
    )
    return BASE_MODELS["tiny_sprites"].model_config(
        num_latent_frames=num_latent_frames,
        window_frames=window,
        **{name: getattr(real, name) for name in kept},
    )


def _fewer(latent_frames: int, chunk_frames: int) -> int:
    """As many chunks as the square root of the real number."""
    return chunk_frames * math.ceil(math.sqrt(latent_frames // chunk_frames))


def _algorithm(
    real: AlgorithmConfig, model: ModelConfig, small: ModelConfig, stand_ins: dict[str, str]
) -> AlgorithmConfig:
    """The same, with a window of fewer chunks that still lies within the video."""
    window, start = real.train_window_frames, real.window_start
    if window is not None:
        window = _fewer(window, model.chunk_frames)
        if isinstance(start, int):
            start = min(_fewer(start, model.chunk_frames), small.num_latent_frames - window)
    return real.model_copy(
        update={
            "main_reward": stand_ins.get(real.main_reward or "", real.main_reward),
            "train_window_frames": window,
            "window_start": start,
        }
    )


def _evaluation(real: EvaluationConfig, chunk_frames: int) -> EvaluationConfig:
    frames = real.num_latent_frames
    return real.model_copy(
        update={
            "num_prompts": 2,
            "rollouts_per_prompt": 2,
            "num_latent_frames": None if frames is None else _fewer(frames, chunk_frames),
            "every_steps": min(real.every_steps, 1),
            "num_shown_videos": min(real.num_shown_videos, 1),
        }
    )


def _lora(real: LoraConfig) -> LoraConfig:
    """A small rank with the same scale alpha / rank, as near as whole numbers come."""
    rank = min(real.rank, LORA_RANK)
    return LoraConfig(rank=rank, alpha=max(1, round(real.alpha * rank / real.rank)))


def _rollout(real: RolloutConfig) -> RolloutConfig:
    """Two groups; two requests a group, where there were several."""
    group_size = min(real.group_size, 4)
    batch_size = group_size if real.batch_size == real.group_size else group_size // 2
    return real.model_copy(
        update={
            "num_groups": min(real.num_groups, 2),
            "group_size": group_size,
            "batch_size": batch_size,
            "min_actors": 1,
            "max_actors": 1,
            "num_cpus": 0.5,
            "num_gpus": 0,
        }
    )


def _learner(real: LearnerConfig) -> LearnerConfig:
    return real.model_copy(
        update={
            "num_ranks": min(real.num_ranks, 2),
            "micro_batch_size": min(real.micro_batch_size, 4),
            "num_cpus": 0.4,
            "num_gpus": 0,
        }
    )


def _reward(real: RewardConfig, key: str) -> RewardConfig:
    return real.model_copy(
        update={
            "key": key,
            "options": "",
            "min_replicas": 1,
            "max_replicas": 1,
            "num_cpus": 0.1,
            "num_gpus": 0,
        }
    )


def _stand_ins(keys: Sequence[str]) -> dict[str, str]:
    """Real key -> embedded scorer, each used once."""
    if len(keys) > len(TINY_SCORERS):
        raise ConfigError(
            f"a small run has {len(TINY_SCORERS)} embedded scorers ({', '.join(TINY_SCORERS)}), too few for "
            f"the rewards {', '.join(keys)}. Leave out --shrink, or rewards."
        )
    found: dict[str, str] = {}
    for key in keys:
        wanted = BY_KEY[key].stand_in_for(key) or key if key in BY_KEY else key
        free = [scorer for scorer in TINY_SCORERS if scorer not in found.values()]
        found[key] = wanted if wanted in free else free[0]
    return found


def _notes(config: RunConfig, small: ModelConfig, stand_ins: dict[str, str]) -> list[str]:
    frames = FRAMES_PER_LATENT_FRAME * (small.num_latent_frames - 1) + 1
    notes = [f"{small.base_model} for {config.model.base_model}, {frames} frames of 32x32, on CPUs only"]
    notes += [f"{scorer} for {key}" for key, scorer in stand_ins.items() if scorer != key]
    if config.model.lora_init is not None:
        notes.append(f"without the LoRA {config.model.lora_init}, which fits the real model only")
    return notes
