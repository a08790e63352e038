"""Strict loading: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import VAE_STEM, shards
from astrolabe_ray.models.weight_files import read_safetensors

Shapes = Mapping[str, tuple[int, ...]]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of `diffusion_pytorch_model.safetensors`, or of the shards that its index lists.

    Raises ConfigError naming the file that is absent or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in shards(folder, VAE_STEM):
        tensors.update(read_safetensors(path))
    return tensors


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Make `tensors` the parameters of `module`, which may be on the meta device.

    Raises ConfigError listing what is missing, unexpected or of another shape.
    """
    require_fit(
        shapes_of(module.state_dict()), shapes_of(tensors), f"weights in {source} do not fit the model"
    )
    module.load_state_dict(dict(tensors), assign=True)


def require_fit(expected: Shapes, found: Shapes, claim: str) -> None:
    """Raises ConfigError, `claim` and a list, where names or shapes differ."""
    complaints = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": [
            f"{name} is {found[name]}, should be {expected[name]}"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ],
    }
    if any(complaints.values()):
        listed = "; ".join(f"{kind}: {_shortened(names)}" for kind, names in complaints.items() if names)
        raise ConfigError(f"{claim}. {listed}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def placed(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move a frozen module where it will be used, in evaluation mode."""
    nn.Module.to(module, device=device, dtype=dtype).eval().requires_grad_(False)


def _shortened(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
