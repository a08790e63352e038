"""Checkpoints as the first Astrolabe release writes them and resumes from them.

checkpoint-<step>/
  lora/adapter_model.bin, adapter_config.json   the LoRA, as PEFT names it
  optimizer.pt                                  AdamW's state; parameters have numbers, in model order
  scaler.pt                                     of the gradient scaler: empty, as for bfloat16
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from astrolabe_ray.config.schema import LearnerConfig
from astrolabe_ray.models.lora_files import Lora, in_model_order, write_lora


def write_first_release(
    lora: Lora, moments: Mapping[str, Tensor], num_updates: int, settings: LearnerConfig, folder: Path
) -> None:
    """Write the files above into `folder`, which exists and is empty.

    `moments`: `exp_avg` and `exp_avg_sq`, each all numbers of the adapter in model order, in one vector.
    `settings`: lr, adam_betas, adam_eps and weight_decay go into AdamW's parameter group.
    """
    (folder / "lora").mkdir()
    write_lora(lora, folder / "lora", "seed")
    params = [lora.tensors[name] for name in in_model_order(lora.tensors)]
    adam = torch.optim.AdamW(
        params,
        lr=settings.lr,
        betas=settings.adam_betas,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
    )
    pieces = {key: flat.split([p.numel() for p in params]) for key, flat in moments.items()}
    for number, param in enumerate(params):
        own = {key: split[number].view_as(param).clone() for key, split in pieces.items()}
        adam.state[param] = {"step": torch.tensor(float(num_updates)), **own}
    torch.save(adam.state_dict(), folder / "optimizer.pt")
    torch.save({}, folder / "scaler.pt")
