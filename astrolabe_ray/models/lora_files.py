"""LoRA files: read in every layout that is published, written for PEFT (also 0.10) and for diffusers.

In memory an adapter's tensors have the names of `lora.adapter_tensors`: `blocks.0.self_attn.q.lora_A`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import require_fit, shapes_of
from astrolabe_ray.models.files import DIFFUSERS_LORA, LORA_CONFIG, LORA_WEIGHTS, find_lora, lora_size
from astrolabe_ray.models.lora import block_linears
from astrolabe_ray.models.wan.names import bare_name
from astrolabe_ray.models.weight_files import kind_of, read_pickled, read_safetensors

LoraFormat = Literal["peft", "seed", "diffusers"]
GENERATOR_LORA = "generator_lora"  # LongLive's file keeps the critic's LoRA beside it
_PEFT_PREFIX = "base_model.model."
_KINDS = [f"{of}.{name}" for of in ("self_attn", "cross_attn") for name in "qkvo"] + ["ffn.0", "ffn.2"]
_FACTOR = re.compile(r"(?P<linear>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")


@dataclass(frozen=True)
class Lora:
    """An adapter: every linear of the blocks gets alpha / rank * B @ A."""

    tensors: dict[str, Tensor]  # A [rank, in] and B [out, rank] of each linear
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def read_lora(path: Path) -> Lora:
    """Read a folder that `write_lora` or PEFT wrote, itself or as `lora/` of a checkpoint, or a file (.pt,
    .bin, .safetensors).

    A file that is not a PEFT folder's does not say its alpha: it is taken to be the rank, as LongLive and
    diffusers do. Raises ConfigError for what is damaged, no LoRA, or of a kind that is not plain A and B.
    """
    found = find_lora(path)
    weights = found if found.is_file() else _weights_in(found)
    loaded = _read(weights)
    tensors = _named(loaded.get(GENERATOR_LORA, loaded), weights)
    rank = _rank(tensors, weights)
    if weights.name not in LORA_WEIGHTS or not (weights.parent / LORA_CONFIG).is_file():
        return Lora(tensors, rank, float(rank))
    said, alpha = lora_size(weights.parent)
    if rank != said:
        raise ConfigError(f"{weights} has rank {rank}, its {LORA_CONFIG} says {said}")
    return Lora(tensors, rank, alpha)


def require_lora_fits(lora: Lora, model: nn.Module, source: Path) -> None:
    """Raises ConfigError listing which A and B are missing, unexpected or of another shape.

    `model`: without adapters.
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, linear in block_linears(model).items():
        expected[f"{name}.lora_A"] = (lora.rank, linear.in_features)
        expected[f"{name}.lora_B"] = (linear.out_features, lora.rank)
    require_fit(expected, shapes_of(lora.tensors), f"the LoRA in {source} does not fit the model")


def write_lora(lora: Lora, folder: Path, form: LoraFormat = "peft") -> None:
    """Write an adapter into `folder`, which exists and is empty.

    `peft`: for `PeftModel.from_pretrained` of any version since 0.10. `seed`: the same as a pickle, its
    tensors in model order.
    `diffusers`: for `load_lora_weights` of its Wan pipelines; the scale is multiplied into B.
    """
    if form == "diffusers":
        scaled = {n: t * lora.scale if n.endswith("lora_B") else t for n, t in lora.tensors.items()}
        named = {f"diffusion_model.{name}.weight": t.contiguous() for name, t in scaled.items()}
        save_file(named, folder / DIFFUSERS_LORA, metadata={"format": "pt"})
        return
    named = {f"{_PEFT_PREFIX}{name}.weight": tensor.contiguous() for name, tensor in lora.tensors.items()}
    if form == "peft":
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    else:
        ordered = (f"{_PEFT_PREFIX}{name}.weight" for name in in_model_order(lora.tensors))
        torch.save({name: named[name].clone() for name in ordered}, folder / "adapter_model.bin")
    (folder / LORA_CONFIG).write_text(json.dumps(_peft_config(lora), indent=1) + "\n")


def in_model_order(names: Iterable[str]) -> list[str]:
    """Sort the names of an adapter's tensors as `lora.adapter_tensors` has them; files sort them as text."""

    def place(name: str) -> tuple[int, int, str]:
        _, block, kind = name.split(".", 2)
        kind, factor = kind.rsplit(".", 1)
        return int(block), _KINDS.index(kind), factor

    return sorted(names, key=place)


def _weights_in(folder: Path) -> Path:
    return next(folder / name for name in LORA_WEIGHTS if (folder / name).is_file())


def _read(path: Path) -> Mapping[str, Any]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickled(path)


def _named(loaded: Mapping[str, Any], source: Path) -> dict[str, Tensor]:
    """A and B by our names, in float32."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in loaded.items():
        found = _FACTOR.fullmatch(bare_name(name.removeprefix(_PEFT_PREFIX)))
        if found is None or not isinstance(tensor, Tensor):
            kind = kind_of(list(loaded))
            what = kind if kind not in (None, "a LoRA") else f"no LoRA that can be read: it holds {name}"
            raise ConfigError(f"{source} is {what}")
        tensors[f"{bare_name(found['linear'])}.lora_{found['factor']}"] = tensor.float()
    if not tensors:
        raise ConfigError(f"{source} is an empty LoRA")
    return tensors


def _rank(tensors: Mapping[str, Tensor], source: Path) -> int:
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A")}
    if len(ranks) != 1:
        raise ConfigError(f"{source} has adapters of ranks {sorted(ranks)}; one rank for all is needed")
    return ranks.pop()


def _peft_config(lora: Lora) -> dict[str, Any]:
    """Settings as PEFT 0.10 knows them: later keys make it fail, and later versions have defaults."""
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "revision": None,
        "task_type": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": alpha,
        "target_modules": sorted(n.removesuffix(".lora_A") for n in lora.tensors if n.endswith("lora_A")),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "loftq_config": {},
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "layer_replication": None,
    }
