"""How the behaviour ("old") policy follows the trained one: old <- d old + (1 - d) default.

Schedules of DiffusionNFT's released code; `none` samples with the newest weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["none", "linear", "delayed"]


def old_policy_decay(schedule: Schedule, step: int) -> float:
    """d in [0, 1) after `step` optimizer steps (1 after the first).

    none: 0; linear: min(0.001 step, 0.5); delayed: 0 before step 75, then min(0.0075 (step - 75), 0.999).
    """
    if schedule == "none":
        return 0.0
    if schedule == "linear":
        return min(0.001 * step, 0.5)
    return min(0.0075 * max(step - 75, 0), 0.999)


def mixed(old: Tensor, default: Tensor, decay: float, *, steps_in: torch.dtype = torch.float32) -> Tensor:
    """A new tensor d old + (1 - d) default; bitwise `default` for d = 0.

    `steps_in`: the dtype that products and sum are rounded to; the result has that of `default`.
    """
    if decay == 0:
        return default.clone()
    narrow_old, narrow_default = old.to(steps_in), default.to(steps_in)
    return (decay * narrow_old + (1 - decay) * narrow_default).to(default.dtype)
