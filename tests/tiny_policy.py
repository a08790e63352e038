"""A run over the tiny model, and policies that differ visibly from its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrolabe_ray.config.schema import (
    ClusterConfig,
    LoraConfig,
    ModelConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
)
from astrolabe_ray.models.lora import adapter_tensors, add_adapters
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.types import PolicyVersion, PublishedPolicy
from astrolabe_ray.weights.pack import pack

LORA = LoraConfig(rank=2, alpha=4)


def tiny_run(model_root: Path, *, dtype: Any = "float32", placement_timeout_s: float = 30, **rollout: Any):
    """4 latent frames of 4 x 2 latent pixels in chunks of 2; keyword arguments go to the rollout section."""
    settings: dict[str, Any] = {"group_size": 4, "batch_size": 2, "num_cpus": 1, "max_attempts": 3}
    return RunConfig(
        name="tiny",
        model=ModelConfig(
            path=str(model_root),
            num_latent_frames=4,
            height=32,
            width=16,
            chunk_frames=2,
            window_frames=None,
            sink_frames=0,
            denoising_steps=(1000, 500),
            dtype=dtype,
        ),
        lora=LORA,
        rollout=RolloutConfig(**(settings | rollout)),
        rewards=(RewardConfig(key="any"),),
        cluster=ClusterConfig(placement_timeout_s=placement_timeout_s),
    )


def random_adapters(model_root: Path, seed: int) -> dict[str, Tensor]:
    """Adapters with B far from zero, so that every layer changes."""
    base = load_transformer(resolve(str(model_root)), torch.float32, "cpu")
    generator = torch.Generator().manual_seed(seed)
    tensors = adapter_tensors(add_adapters(base, LORA, names=("old",)), "old")
    return {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}


def published(model_root: Path, step: int) -> PublishedPolicy:
    """Policy of step `step`, every step another one; its buffer is an array."""
    tensors = random_adapters(model_root, seed=step)
    version = PolicyVersion(step=step)
    return PublishedPolicy(*pack(tensors, version=version, lora_scale=LORA.alpha / LORA.rank))
