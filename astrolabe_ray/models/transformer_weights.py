"""The transformer's weights by their original names, out of every kind of file that they are published in.

folder           safetensors, whole or sharded, as Wan and diffusers publish them
.safetensors     one set of weights, also an index of shards (`*.safetensors.index.json`)
.pt .pth .bin    one set of weights, or several by name: `generator_ema`, `generator`, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import read_tensors
from astrolabe_ray.models.files import shards
from astrolabe_ray.models.wan.architecture import WanArchitecture, known_size
from astrolabe_ray.models.wan.names import bare_name, from_diffusers, is_diffusers_name
from astrolabe_ray.models.weight_files import kind_of, read_pickled, read_safetensors

CONTAINERS = ("generator_ema", "generator", "model", "state_dict")
_INDEX = ".safetensors.index.json"


def transformer_tensors(source: Path, key: str | None) -> dict[str, Tensor]:
    """Tensors of `source` by original name, memory-mapped. `key`: which set of a file that holds several.

    Raises ConfigError for a damaged file, one of another kind, or a choice that the file does not offer.
    """
    found = _read(source, key)
    kind = kind_of(found)
    if kind is not None:
        hint = "; name it as model.lora_init" if kind == "a LoRA" else ""
        raise ConfigError(f"{source} is {kind}, not a transformer{hint}")
    bare = {bare_name(name): tensor for name, tensor in found.items()}
    if len(bare) < len(found):
        raise ConfigError(f"{source} holds tensors that differ only in prefixes like `model.`; keep one set")
    if any(is_diffusers_name(name) for name in bare):
        return {from_diffusers(name): tensor for name, tensor in bare.items()}
    return bare


def require_size(architecture: WanArchitecture, tensors: Mapping[str, Tensor], source: Path, config: Path):
    """Raises ConfigError if `tensors` are of another size than `config` describes, naming both."""
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")}
    patch = tensors.get("patch_embedding.weight")
    if patch is None or not blocks:
        return  # not even the names fit; strict loading lists them
    found, described = (patch.shape[0], len(blocks)), (architecture.dim, architecture.num_layers)
    if found != described:
        raise ConfigError(
            f"{source} holds a transformer of {_size(*found)}, but {config} describes {_size(*described)}; "
            "set model.path to the base directory that belongs to the checkpoint"
        )


def _read(source: Path, key: str | None) -> Mapping[str, Tensor]:
    if source.suffix not in (".pt", ".pth", ".bin"):
        if key is not None:
            raise ConfigError(f"{source} holds one set of weights; leave model.checkpoint_key {key} out")
        if source.is_dir():
            return read_tensors(source)
        if source.name.endswith(_INDEX):
            paths = shards(source.parent, source.name.removesuffix(_INDEX))
            return {name: tensor for path in paths for name, tensor in read_safetensors(path).items()}
        if source.suffix == ".safetensors":
            return read_safetensors(source)
        raise ConfigError(f"{source}: weights are read from .safetensors, .pt, .pth and .bin files")
    return _tensors(_chosen(read_pickled(source), key, source), source)


def _chosen(loaded: Mapping[Any, Any], key: str | None, source: Path) -> Mapping[Any, Any]:
    """The set of weights that `key` names, or the only one that there is."""
    sets = [str(name) for name, value in loaded.items() if isinstance(value, Mapping)]
    offered = [name for name in sets if name in CONTAINERS]
    held = f"it holds {', '.join(sets)}" if sets else "it holds one set of weights, without a name"
    if key is not None:
        if key not in sets:
            way_out = f"use {' or '.join(offered)}" if offered else "leave model.checkpoint_key out"
            raise ConfigError(f"{source} has no weights '{key}': {held}; {way_out}")
        return loaded[key]
    if len(offered) > 1:
        raise ConfigError(
            f"{source} holds several sets of weights; choose with model.checkpoint_key: {', '.join(offered)}"
        )
    if "generator_lora" in sets:
        raise ConfigError(f"{source} is a LoRA, not a transformer; name it as model.lora_init")
    return loaded[offered[0]] if offered else loaded


def _tensors(loaded: Mapping[Any, Any], source: Path) -> Mapping[str, Tensor]:
    odd = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if odd or not loaded:
        listed = ", ".join(odd[:5]) or "nothing"
        raise ConfigError(f"{source} holds {listed} where a transformer's tensors should be")
    return loaded


def _size(dim: int, layers: int) -> str:
    name = known_size(dim, layers)
    return f"dim {dim} and {layers} layers" + (f" ({name})" if name else "")
