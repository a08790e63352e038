"""Which files a model is made of. No torch here: a missing file is found before anything heavy loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from astrolabe_ray.errors import ConfigError

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
