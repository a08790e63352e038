"""The policies that live beside each other as adapters of one model."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.models.files import require_lora_size
from astrolabe_ray.models.lora import add_adapters, fill_adapter
from astrolabe_ray.models.lora_files import Lora, read_lora, require_lora_fits
from astrolabe_ray.models.wan.transformer import CausalWanModel

REFERENCE = "reference"  # the name that `Engine.using` takes


def with_policies(
    base: CausalWanModel, config: LoraConfig, lora_init: Path | None, *, seed: int, has_reference: bool
) -> PeftModel:
    """`base` with the adapters `default` and `old`.

    Without `lora_init` they are fresh, and the reference policy is the base without adapters. With it
    they start from that LoRA, and so does a third one, `reference`: the penalty pulls to where training
    started. `has_reference`: that one is there in any case, for a reference that moves.
    Raises ConfigError if the LoRA does not fit the model or `config`.
    """
    lora = None if lora_init is None else _initial(lora_init, base, config)
    names = ("default", "old") if lora is None and not has_reference else ("default", "old", REFERENCE)
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
