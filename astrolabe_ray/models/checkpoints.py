"""Strict loading of safetensors folders: every tensor finds its place, or nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from astrolabe_ray.errors import ConfigError

STEM = "diffusion_pytorch_model"


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of `diffusion_pytorch_model.safetensors`, or of the shards that its index lists.

    Raises ConfigError naming the file that is absent or damaged.
    """
    index = folder / f"{STEM}.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = [f"{STEM}.safetensors"]
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors.update(load_file(folder / name))
        except FileNotFoundError:
            raise ConfigError(f"{folder / name} does not exist; it must hold the weights") from None
        except SafetensorError as reason:
            raise ConfigError(f"{folder / name} is damaged: {reason}; copy it again") from None
    return tensors


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Make `tensors` the parameters of `module`, which may be on the meta device.

    Raises ConfigError listing what is missing, unexpected or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
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
        raise ConfigError(f"weights in {source} do not fit its config.json. {listed}")
    module.load_state_dict(dict(tensors), assign=True)


def placed(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move a frozen module where it will be used, in evaluation mode."""
    nn.Module.to(module, device=device, dtype=dtype).eval().requires_grad_(False)


def _shortened(names: list[str], limit: int = 5) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
