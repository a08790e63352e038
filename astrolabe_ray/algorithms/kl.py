"""Penalty that keeps the policy near the reference policy, in x0-space.

For Gaussian steps of equal variance the KL divergence is the squared distance of the means times a
constant; the constant is part of `kl_coef`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distance(new: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of each sample: [B, ...] x [B, ...] -> [B], at least float32.

    Raises ValueError when shapes differ.
    """
    if new.shape != reference.shape:
        raise ValueError(f"new {tuple(new.shape)} and reference {tuple(reference.shape)} must have one shape")
    dtype = torch.promote_types(new.dtype, torch.float32)
    return (new.to(dtype) - reference.to(dtype)).square().flatten(1).mean(1)
