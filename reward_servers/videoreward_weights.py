"""Weights of a VideoReward checkpoint, its LoRA folded in. Two layouts of a checkpoint's folder are known:

model.pth                                           everything, as PEFT names it
adapter_model.safetensors, non_lora_state_dict.pth  the LoRA, and what was trained besides it: the vision
                                                    tower and the head; all else is that of the base model
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import LORA_CONFIG, lora_size, shards
from astrolabe_ray.models.weight_files import read_pickled, read_safetensors
from reward_servers.qwen_reward import merged_lora, plain_names, renamed

WHOLE, LORA, REST = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
BASE_STEM = "model"
EMBEDDING = "backbone.language_model.embed_tokens.weight"
TRAINED = ("backbone.visual.", "head.")
"""What a checkpoint holds of the model besides its LoRA."""


def newest_checkpoint(folder: Path) -> Path:
    """The folder of the highest step. Raises ConfigError if there is none with files of either layout."""
    found = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit()
        and ((path / WHOLE).exists() or ((path / LORA).exists() and (path / REST).exists()))
    }
    if not found:
        raise ConfigError(
            f"{folder} holds no checkpoint-STEP/{WHOLE}, and none with {LORA} and {REST}; fetch it again"
        )
    return found[max(found)]


def read_checkpoint(folder: Path, lora_alpha: float, base: Path, num_tokens: int) -> dict[str, Tensor]:
    """Weights by the names of `QwenReward`. `base` is read for the split layout only.

    Raises ConfigError for half an adapter, one that leaves out layers, a base that is not here, and weights
    that were trained and are not in the checkpoint.
    """
    source = folder / WHOLE
    if source.exists():
        tensors = renamed(plain_names(read_pickled(source)))
    else:
        source = folder / LORA
        tensors = _split_tensors(folder, lora_alpha, base, num_tokens)
    try:
        merged = merged_lora(tensors, lora_alpha)
    except KeyError as absent:
        raise ConfigError(
            f"{source} holds half of a LoRA pair: {absent} is missing or unknown; fetch it again"
        ) from None
    _require_every_layer([name for name in tensors if ".lora_" in name], merged, source)
    return merged


def _split_tensors(folder: Path, lora_alpha: float, base: Path, num_tokens: int) -> dict[str, Tensor]:
    """LoRA pairs beside whole weights, by the names of `QwenReward`."""
    lora = renamed(plain_names(read_safetensors(folder / LORA)))
    rest = renamed(plain_names(read_pickled(folder / REST)))
    strangers = [n for n in lora if ".lora_" not in n] + [n for n in rest if ".lora_" in n]
    if strangers:
        raise ConfigError(f"in {folder}, {strangers[0]} is in the file of the others; fetch it again")
    if (folder / LORA_CONFIG).exists() and lora_size(folder)[1] != lora_alpha:
        raise ConfigError(
            f"{folder / LORA_CONFIG} says lora_alpha {lora_size(folder)[1]:g}, model_config.json says "
            f"{lora_alpha:g}; fetch both again"
        )
    under = _base_tensors(base, num_tokens)
    _require_names((n for n in under if n.startswith(TRAINED)), rest, folder / REST)
    _require_names(["head.weight"], rest, folder / REST)
    return under | rest | lora


def _base_tensors(folder: Path, num_tokens: int) -> dict[str, Tensor]:
    """With as many embeddings as there are tokens: the published file has spare ones behind them."""
    files = shards(folder, BASE_STEM)
    absent = [str(path) for path in files if not path.exists()]
    if absent:
        raise ConfigError(
            f"this checkpoint holds only what was trained, and the base model's {', '.join(absent)} is not "
            "here; fetch it, or a checkpoint with model.pth"
        )
    tensors = renamed({name: x for path in files for name, x in read_safetensors(path).items()})
    _require_names([EMBEDDING], tensors, folder)
    return tensors | {EMBEDDING: tensors[EMBEDDING][:num_tokens]}


def _require_names(names: Iterable[str], found: Mapping[str, Tensor], source: Path) -> None:
    absent = sorted(set(names) - found.keys())
    if absent:
        raise ConfigError(f"{source} lacks {absent[0]}{_and_more(absent)}; fetch it again")


def _require_every_layer(lora: Iterable[str], weights: Iterable[str], source: Path) -> None:
    """A linear that has a LoRA in one layer has one in all of them."""
    wrapped = {name.partition(".lora_")[0] for name in lora}
    kinds = {re.sub(r"\.\d+\.", ".N.", layer) for layer in wrapped}
    linears = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
    absent = sorted(x for x in linears - wrapped if re.sub(r"\.\d+\.", ".N.", x) in kinds)
    if absent:
        raise ConfigError(f"{source} has no LoRA for {absent[0]}{_and_more(absent)}; fetch it again")


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
