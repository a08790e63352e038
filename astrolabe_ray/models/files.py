"""Which files a model is made of. No torch here: a missing file is found before anything heavy loads.

Three kinds of directory are known:
  folders    transformer/, vae/, text_encoder/, tokenizer/: ours, and that of diffusers pipelines
  original   config.json, models_t5_umt5-xxl-enc-bf16.pth, Wan2.1_VAE.pth, google/umt5-xxl/
In both, `checkpoint` (one file) can stand for the transformer's weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from astrolabe_ray.config.base_models import (
    BASE_MODELS,
    TEXT_ENCODER_FILE,
    TOKENIZER_DIR,
    TOKENIZER_FILES,
    VAE_FILE,
    kin_of,
    owner_of,
)
from astrolabe_ray.config.schema import LoraConfig, ModelConfig
from astrolabe_ray.errors import ConfigError

BUILTIN = {"builtin:sprites": Path(__file__).parents[1] / "data" / "sprites" / "weights"}
TRANSFORMER_STEM = VAE_STEM = "diffusion_pytorch_model"
TEXT_ENCODER_STEM = "model"
LORA_CONFIG = "adapter_config.json"
_NOT_PLAIN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
LORA_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
"""The one file of a LoRA's folder that is written for diffusers."""


@dataclass(frozen=True)
class ModelFiles:
    """What one model is read from; everything exists."""

    root: Path
    architecture: Path  # JSON with the transformer's sizes
    transformer: Path  # folder of safetensors, or one checkpoint file
    checkpoint_key: str | None  # which weights of a file that holds several
    vae: Path  # folder as diffusers saves an AutoencoderKLWan, or the original file
    text_encoder: Path  # folder as transformers saves a UMT5EncoderModel, or the original file
    tokenizer: Path
    lora_init: Path | None = None  # adapter folder or file


def files_of(model: ModelConfig) -> ModelFiles:
    """Files that `model` names. Raises ConfigError naming all that are absent."""
    return resolve(
        model.path,
        checkpoint=model.checkpoint,
        checkpoint_key=model.checkpoint_key,
        lora_init=model.lora_init,
        base_model=model.base_model,
    )


def anywhere(model: ModelConfig) -> ModelConfig:
    """`model` with absolute paths, which mean the same in a process that was started in another folder."""
    paths = {
        name: str(absolute(value))
        for name in ("path", "checkpoint", "lora_init", "prompt_cache")
        if (value := getattr(model, name)) is not None and value not in BUILTIN
    }
    return model.model_copy(update=paths)


def resolve(
    path: str,
    *,
    checkpoint: str | None = None,
    checkpoint_key: str | None = None,
    lora_init: str | None = None,
    base_model: str = "",
) -> ModelFiles:
    """Files of a model directory, or of `builtin:sprites`; the options are those of `ModelConfig`.

    Raises ConfigError naming every file that is absent and, for a published model (`base_model`, or where the
    paths are those of one), the command that fetches them.
    """
    if path.startswith("builtin:") and path not in BUILTIN:
        raise ConfigError(f"there is no model '{path}'; use {' or '.join(BUILTIN)} or a directory")
    if checkpoint_key is not None and checkpoint is None:
        raise ConfigError(f"model.checkpoint_key {checkpoint_key} needs a file: set model.checkpoint")
    root = BUILTIN.get(path) or absolute(path)
    published = None if path in BUILTIN else owner_of(path, checkpoint)
    kin = None if path in BUILTIN else published or kin_of(base_model, checkpoint)
    is_original = _looks_original(root) or (kin is not None and not _looks_like_folders(root))
    files, needed = _original(root) if is_original else _folders(root)
    if checkpoint is None:
        needed += shards(files.transformer, TRANSFORMER_STEM)
    else:
        files = replace(files, transformer=absolute(checkpoint), checkpoint_key=checkpoint_key)
        needed.append(files.transformer)
    if lora_init is not None:
        needed.append(absolute(lora_init))
    absent = [file for file in needed if not file.exists()]
    if published is None and checkpoint is not None and absent == [files.transformer]:
        raise ConfigError(f"model '{path}' lacks {absent[0]}; name a checkpoint file that exists, or none")
    if absent:
        raise ConfigError(_absence(path, absent, published, kin, is_original=is_original))
    return files if lora_init is None else replace(files, lora_init=find_lora(absolute(lora_init)))


def absolute(path: str) -> Path:
    """A path as it was typed, `~` included, from the root on. Raises ConfigError for the home of nobody."""
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as reason:
        raise ConfigError(f"can't find {path}: {reason}; write the whole path") from None


def find_lora(path: Path) -> Path:
    """The adapter folder that `path` is or holds (`lora/` of a checkpoint), or the file that it is or that it
    holds for diffusers.

    Raises ConfigError if there is no adapter.
    """
    if path.is_file():
        return path
    for folder in (path, path / "lora"):
        if (folder / LORA_CONFIG).is_file():
            if not any((folder / name).is_file() for name in LORA_WEIGHTS):
                raise ConfigError(f"{folder} holds {LORA_CONFIG} but no {' or '.join(LORA_WEIGHTS)}")
            return folder
        if (folder / DIFFUSERS_LORA).is_file():
            return folder / DIFFUSERS_LORA
    raise ConfigError(
        f"there is no LoRA in {path}: name a file, or a folder that holds {LORA_CONFIG} or {DIFFUSERS_LORA}, "
        "itself or in lora/"
    )


def lora_size(folder: Path) -> tuple[int, float]:
    """Rank and alpha of an adapter folder. Raises ConfigError for what plain A and B can't express."""
    path = folder / LORA_CONFIG
    try:
        values = json.loads(path.read_text())
        rank, alpha = int(values["r"]), float(values["lora_alpha"])
    except (ValueError, KeyError, TypeError) as reason:
        raise ConfigError(f"{path} tells no rank and alpha ({reason}); expected r and lora_alpha") from None
    odd = [name for name in _NOT_PLAIN if values.get(name)]
    if odd or values.get("bias", "none") != "none":
        raise ConfigError(f"{path} uses {', '.join(odd) or 'bias'}; only plain LoRA can be read")
    return rank, alpha


def require_lora_size(lora_init: Path, size: tuple[int, float], config: LoraConfig) -> None:
    """Raises ConfigError if a LoRA to start from has another rank or alpha than the adapters to train."""
    rank, alpha = size
    if (rank, alpha) != (config.rank, config.alpha):
        raise ConfigError(
            f"model.lora_init {lora_init} has rank {rank} and alpha {alpha:g}, but lora.rank is "
            f"{config.rank} and lora.alpha {config.alpha}. Use --config.lora.rank={rank} "
            f"--config.lora.alpha={alpha:g}."
        )


def shards(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of `folder`: `stem`.safetensors, or those that its index lists.

    Raises ConfigError for an index that can't be read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [folder / f"{stem}.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise ConfigError(f"{index} lists no shards ({reason}); copy it again") from None


def _folders(root: Path) -> tuple[ModelFiles, list[Path]]:
    """Parts of a directory of folders, and the files that they need besides the transformer's weights."""
    transformer, vae = root / "transformer", root / "vae"
    text_encoder, tokenizer = root / "text_encoder", root / "tokenizer"
    needed = [transformer / "config.json", vae / "config.json", *shards(vae, VAE_STEM)]
    needed += [text_encoder / "config.json", *shards(text_encoder, TEXT_ENCODER_STEM)]
    needed.append(tokenizer / "tokenizer_config.json")
    return ModelFiles(
        root, transformer / "config.json", transformer, None, vae, text_encoder, tokenizer
    ), needed


def _original(root: Path) -> tuple[ModelFiles, list[Path]]:
    """The same for a directory as Wan published it."""
    config, vae, text_encoder = root / "config.json", root / VAE_FILE, root / TEXT_ENCODER_FILE
    tokenizer = root / TOKENIZER_DIR
    needed = [config, vae, text_encoder, *(tokenizer / name for name in TOKENIZER_FILES)]
    return ModelFiles(root, config, root, None, vae, text_encoder, tokenizer), needed


def _looks_original(root: Path) -> bool:
    names = ("config.json", TEXT_ENCODER_FILE, VAE_FILE)
    return not _looks_like_folders(root) and any((root / name).exists() for name in names)


def _looks_like_folders(root: Path) -> bool:
    return (root / "transformer").is_dir()


def _absence(
    path: str, absent: list[Path], published: str | None, kin: str | None, *, is_original: bool
) -> str:
    """The error's text: what is absent, what belongs there and how to get it."""
    if published is not None:
        way_out = f"fetch them with `python launch.py models download {published}`"
    elif kin is not None and is_original:
        config = BASE_MODELS[kin].config
        way_out = (
            f"`python launch.py models download {kin}` puts {config.path} and {config.checkpoint} into the "
            "folder that it is typed in; name both with absolute paths, as model.path and model.checkpoint"
        )
    elif is_original:
        way_out = (
            f"an original Wan directory holds config.json, {TEXT_ENCODER_FILE}, {VAE_FILE}, {TOKENIZER_DIR}/ "
            "and, unless model.checkpoint is set, the transformer's weights"
        )
    else:
        way_out = "a model directory holds transformer/, vae/, text_encoder/ and tokenizer/"
    return f"model '{path}' lacks {', '.join(map(str, absent))}; {way_out}"
