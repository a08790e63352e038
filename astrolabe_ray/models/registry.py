"""How a model's transformer is loaded; where its files are says `files`."""

from __future__ import annotations

import torch

from astrolabe_ray.models.checkpoints import load_strict, placed, read_tensors
from astrolabe_ray.models.files import BUILTIN, ModelFiles, resolve
from astrolabe_ray.models.wan.architecture import read_architecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

__all__ = ["BUILTIN", "ModelFiles", "load_transformer", "resolve"]


def load_transformer(files: ModelFiles, dtype: torch.dtype, device: torch.device | str) -> CausalWanModel:
    """The frozen transformer on `device`. Raises ConfigError if weights and config.json disagree."""
    architecture = read_architecture(files.transformer / "config.json")
    with torch.device("meta"):
        model = CausalWanModel(architecture)
    load_strict(model, read_tensors(files.transformer), files.transformer)
    placed(model, device, dtype)
    return model
