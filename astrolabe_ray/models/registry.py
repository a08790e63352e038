"""How a model's transformer is loaded; where its files are says `files`."""

from __future__ import annotations

import torch

from astrolabe_ray.models.checkpoints import load_strict, placed
from astrolabe_ray.models.files import BUILTIN, ModelFiles, files_of, resolve
from astrolabe_ray.models.transformer_weights import require_size, transformer_tensors
from astrolabe_ray.models.wan.architecture import read_architecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

__all__ = ["BUILTIN", "ModelFiles", "files_of", "load_transformer", "mapped_transformer", "resolve"]


def load_transformer(files: ModelFiles, dtype: torch.dtype, device: torch.device | str) -> CausalWanModel:
    """The frozen transformer on `device`.

    Raises ConfigError if weights and sizes disagree, or the file is damaged or of another kind.
    """
    model = mapped_transformer(files)
    placed(model, device, dtype)
    return model


def mapped_transformer(files: ModelFiles) -> CausalWanModel:
    """The transformer with the weights where they lie in the file: checked by name and shape, not read."""
    architecture = read_architecture(files.architecture)
    tensors = transformer_tensors(files.transformer, files.checkpoint_key)
    require_size(architecture, tensors, files.transformer, files.architecture)
    with torch.device("meta"):
        model = CausalWanModel(architecture)
    load_strict(model, tensors, files.transformer)
    return model
