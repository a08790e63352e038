"""Tensors of one weight file, without running code from it and without reading what nobody asks for.

Both formats are memory-mapped: a tensor's bytes are read when they are used.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from astrolabe_ray.errors import ConfigError

_KINDS = {  # by what the names of the tensors hold or begin with
    "a LoRA": re.compile(r".*\.lora_(A|B|down|up)\b"),
    "a text encoder": re.compile(r"token_embedding\.|shared\.|encoder\.block\."),
    "a VAE": re.compile(r"decoder\.|quant_conv\."),
}
_FOREIGN = re.compile(r"(GLOBAL|[Gg]lobal:?) (?P<type>[A-Za-z_]\w*(\.\w+)+)")  # in what weights_only refuses
_LFS_POINTER = b"version https://git-lfs"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file. Raises ConfigError if it is absent or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; it must hold the weights") from None
    except SafetensorError as reason:
        raise ConfigError(f"{path} is damaged: {_defect(path) or reason}; copy it again") from None


def read_pickled(path: Path) -> Mapping[Any, Any]:
    """What `torch.save` wrote: a dictionary of tensors or of such dictionaries.

    Raises ConfigError if it is absent, damaged, or holds Python objects besides tensors and plain values.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; it must hold the weights")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as reason:
        found = _FOREIGN.search(str(reason))
        if found is not None:
            raise ConfigError(
                f"{path} holds Python objects besides tensors, first a {found['type']}; reading them could "
                "run code. If you trust where it comes from, save its weights alone, once: "
                f"torch.save(torch.load('{path}', weights_only=False)[KEY OF THE WEIGHTS], NEW FILE)"
            ) from None
        raise ConfigError(f"{path} is damaged: {_defect(path) or 'no PyTorch file'}; copy it again") from None
    except (RuntimeError, OSError, EOFError) as reason:
        raise ConfigError(f"{path} is damaged: {_defect(path) or reason}; copy it again") from None
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def kind_of(names: Collection[str]) -> str | None:
    """What a file with tensors of these names is, if it is plainly no transformer."""
    return next(
        (kind for kind, pattern in _KINDS.items() if any(pattern.match(name) for name in names)), None
    )


def require_kind(names: Collection[str], wanted: str, path: Path) -> None:
    """Raises ConfigError saying what the file is, if its tensors' names are not those of `wanted`."""
    kind = kind_of(names)
    if kind != wanted:
        raise ConfigError(f"{path} is {kind or 'of no known kind'}, not {wanted}")


def _defect(path: Path) -> str | None:
    """What a file that can't be read turns out to be, if its beginning tells."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(_LFS_POINTER):
        return "it is a Git LFS pointer, not the file itself"
    if start.startswith(b"PK"):
        return f"it ends after {size:,} bytes"
    return None
