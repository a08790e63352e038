"""The policies that live beside each other as adapters of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.models.files import require_lora_size
from astrolabe_ray.models.lora import add_adapters, fill_adapter
from astrolabe_ray.models.lora_files import Lora, read_lora, require_lora_fits
from astrolabe_ray.models.wan.transformer import CausalWanModel

REFERENCE = "reference"  # the name that `Engine.using` takes
ReferenceKind = Literal["start", "base", "lagging"]
"""The reference policy: what training starts from, the base without adapters, or one that follows."""


def with_policies(
    base: CausalWanModel,
    config: LoraConfig,
    lora_init: Path | None,
    *,
    seed: int,
    reference: ReferenceKind,
) -> PeftModel:
    """`base` with the adapters `default` and `old`.

    Without `lora_init` they are fresh, else they start from that LoRA. Where the reference policy is not the
    base without adapters, there is a third one, `reference`, equal to them.
    Raises ConfigError if the LoRA does not fit the model or `config`.
    """
    lora = None if lora_init is None else _initial(lora_init, base, config)
    is_base = reference == "base" or (reference == "start" and lora is None)
    names = ("default", "old") if is_base else ("default", "old", REFERENCE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = add_adapters(base, config, names)
    if lora is not None:
        for name in names:
            fill_adapter(model, name, lora.tensors)
    return model


def _initial(path: Path, base: CausalWanModel, config: LoraConfig) -> Lora:
    lora = read_lora(path)
    require_lora_size(path, (lora.rank, lora.alpha), config)
    require_lora_fits(lora, base, path)
    return lora
