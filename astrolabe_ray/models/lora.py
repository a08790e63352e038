"""LoRA adapters on the transformer: trained through PEFT, sampled with as merged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import peft
import torch
from peft import PeftModel
from torch import Tensor, nn

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.models.rounding import rounded_by_chance
from astrolabe_ray.models.wan.transformer import CausalWanModel

_PREFIX = "base_model.model."


def add_adapters(
    model: CausalWanModel, config: LoraConfig, names: Sequence[str] = ("default", "old")
) -> PeftModel:
    """Wrap `model` with equal adapters (A Kaiming, B zero) on every linear of its blocks.

    Their dtype is `config.dtype`, whatever the base has. The first one is active and trainable, the
    others are frozen.
    """
    targets = list(block_linears(model))
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets
    )
    wrapped = PeftModel(model, settings, adapter_name=names[0])  # type: ignore[arg-type]
    first = adapter_tensors(wrapped, names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, settings)
        for key, tensor in adapter_tensors(wrapped, name).items():
            tensor.data.copy_(first[key])
    for name in names:
        for tensor in adapter_tensors(wrapped, name).values():
            tensor.data = tensor.data.to(getattr(torch, config.dtype))
    wrapped.set_adapter(names[0])
    return wrapped


def adapter_tensors(peft_model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter in model order: A [rank, in] and B [out, rank] of each linear.

    Example of a key: `blocks.0.self_attn.q.lora_A`.
    """
    found: dict[str, nn.Parameter] = {}
    for path, module in peft_model.named_modules():
        factors: Any = module
        if hasattr(module, "lora_A") and name in factors.lora_A:
            key = path.removeprefix(_PREFIX)
            found[f"{key}.lora_A"] = factors.lora_A[name].weight
            found[f"{key}.lora_B"] = factors.lora_B[name].weight
    return found


@torch.no_grad()
def fill_adapter(peft_model: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors`, which must be exactly those of the adapter, into it."""
    for key, parameter in adapter_tensors(peft_model, name).items():
        parameter.copy_(tensors[key])


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer inside `blocks.*` by its full name, in model order."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("blocks.") and isinstance(module, nn.Linear)
    }


def merge_for_good(model: CausalWanModel, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Fold an adapter into the weights, linear by linear: beside the model there is room for one at a time.

    `scale`: alpha / rank. Raises WeightMismatch as `MergedLinears.load` does.
    """
    linears = block_linears(model)
    _require_one_pair_each(linears, tensors)
    for name, linear in linears.items():
        _write_merged(linear, linear.weight, tensors, name, scale)


class MergedLinears:
    """Adapters folded into the weights of a model that only samples.

    Keeps the base weights of the block linears aside, so each load starts from them: loading is
    exact and repeatable, never a merge on top of a merge. The live weights keep their memory.
    """

    def __init__(self, model: CausalWanModel, scale: float, *, base_on_host: bool = False) -> None:
        """`scale`: alpha / rank. `base_on_host`: keep the base in host memory, from where each load
        brings it to the device linear by linear; what is loaded is bitwise the same.
        """
        self._scale = scale
        self._linears = block_linears(model)
        self._base = {name: _copy(linear.weight, base_on_host) for name, linear in self._linears.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> int:
        """Write base + scale * B @ A, summed in float32, into every linear; returns how many.

        Raises WeightMismatch, before anything is written, if `tensors` are not exactly one A and one
        B of fitting shape for each of them.
        """
        _require_one_pair_each(self._linears, tensors)
        for name, linear in self._linears.items():
            _write_merged(linear, self._base[name], tensors, name, self._scale)
        return len(self._linears)

    @torch.no_grad()
    def unload(self) -> None:
        """Make every linear bitwise what it was before the first `load`."""
        for name, linear in self._linears.items():
            linear.weight.copy_(self._base[name])


def _copy(weight: Tensor, on_host: bool) -> Tensor:
    return weight.detach().to("cpu" if on_host else weight.device, copy=True)


@torch.no_grad()
def _write_merged(
    linear: nn.Linear, base: Tensor, tensors: Mapping[str, Tensor], name: str, scale: float
) -> None:
    """base + scale * B @ A, summed in float32 where the linear is."""
    weight = linear.weight
    a, b = (tensors[f"{name}.lora_{factor}"].to(weight.device, torch.float32) for factor in "AB")
    merged = torch.addmm(base.to(weight.device).float(), b, a, alpha=scale)
    weight.copy_(rounded_by_chance(merged, name) if weight.dtype == torch.bfloat16 else merged)


def _require_one_pair_each(linears: Mapping[str, nn.Linear], tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightMismatch if `tensors` are not exactly one A and one B of fitting shape for each linear."""
    expected = {f"{name}.lora_{factor}" for name in linears for factor in "AB"}
    odd = sorted(expected ^ tensors.keys())
    if odd:
        raise WeightMismatch(f"adapter and model differ in {len(odd)} tensors, first {odd[0]}")
    for name, linear in linears.items():
        a, b, wanted = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], tuple(linear.weight.shape)
        if (b.shape[0], a.shape[1]) != wanted or b.shape[1] != a.shape[0]:
            shapes = f"B {tuple(b.shape)} @ A {tuple(a.shape)}"
            raise WeightMismatch(f"{name}: {shapes} does not give {wanted}")
