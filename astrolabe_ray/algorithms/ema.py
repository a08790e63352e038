"""Exponential moving average of the trained adapter: the policy that is evaluated and saved.

In float32: in bfloat16 an update smaller than 2^-9 of the weight would be lost. The first Astrolabe release
keeps it in bfloat16 all the same; `steps_in` rounds after each of its operations.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ema_decay(step: int, *, maximum: float) -> float:
    """Warm-up min((1 + s) / (10 + s), maximum) at update s = 0, 1, ..."""
    return min((1 + step) / (10 + step), maximum)


def ema_update_(ema: Tensor, value: Tensor, *, decay: float, steps_in: torch.dtype = torch.float32) -> None:
    """In place: ema <- decay ema + (1 - decay) value. Raises ValueError when `ema` is not float32.

    `steps_in`: the dtype that difference, product and sum are rounded to.
    """
    if ema.dtype != torch.float32:
        raise ValueError(f"the moving average is kept in float32, got {ema.dtype}")
    if steps_in == torch.float32:
        ema.lerp_(value.to(ema.dtype), 1 - decay)
    else:
        narrow = ema.to(steps_in)
        ema.copy_(narrow + (1 - decay) * (value.to(steps_in) - narrow))
