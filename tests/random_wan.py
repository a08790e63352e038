"""A small causal transformer with random weights, and inputs for it."""

from __future__ import annotations

import torch

from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

ARCHITECTURE = WanArchitecture(24, 2, 2, 32, 16, 12, 5, in_channels=4, out_channels=4)


def random_model(seed: int = 0) -> CausalWanModel:
    """A model whose every parameter matters: no zero head, no zero biases."""
    torch.manual_seed(seed)
    model = CausalWanModel(ARCHITECTURE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.5)
    return model


def video(seed: int, frames: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, frames, 4, 4, 6, generator=torch.Generator().manual_seed(seed))


def prompts(batch: int = 2, rows: int = 5) -> torch.Tensor:
    return torch.randn(batch, rows, 12, generator=torch.Generator().manual_seed(9))
