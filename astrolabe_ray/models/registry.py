"""Where a model's files are, and how its transformer is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import load_strict, placed, read_tensors
from astrolabe_ray.models.wan.architecture import read_architecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

BUILTIN = {"builtin:sprites": Path(__file__).parents[1] / "data" / "sprites" / "weights"}


@dataclass(frozen=True)
class ModelFiles:
    """Folders of one model; all exist and hold what tells how to read them."""

    root: Path
    transformer: Path  # config.json in original Wan names, safetensors
    vae: Path  # as diffusers saves an AutoencoderKLWan
    text_encoder: Path  # as transformers saves a UMT5EncoderModel
    tokenizer: Path


def resolve(path: str) -> ModelFiles:
    """Files of a model directory, or of `builtin:sprites`. Raises ConfigError naming what is absent."""
    if path.startswith("builtin:") and path not in BUILTIN:
        raise ConfigError(f"there is no model '{path}'; use {' or '.join(BUILTIN)} or a directory")
    root = BUILTIN.get(path) or Path(path).expanduser().resolve()
    needed = [root / part / "config.json" for part in ("transformer", "vae", "text_encoder")]
    needed.append(root / "tokenizer" / "tokenizer_config.json")
    absent = [str(file) for file in needed if not file.exists()]
    if absent:
        raise ConfigError(
            f"model '{path}' lacks {', '.join(absent)}; a model directory holds transformer/, vae/, "
            "text_encoder/ and tokenizer/"
        )
    return ModelFiles(root, *(file.parent for file in needed))


def load_transformer(files: ModelFiles, dtype: torch.dtype, device: torch.device | str) -> CausalWanModel:
    """The frozen transformer on `device`. Raises ConfigError if weights and config.json disagree."""
    architecture = read_architecture(files.transformer / "config.json")
    with torch.device("meta"):
        model = CausalWanModel(architecture)
    load_strict(model, read_tensors(files.transformer), files.transformer)
    placed(model, device, dtype)
    return model
