"""Penalty that keeps the policy near the reference policy, on x0 predictions or on flows.

For Gaussian steps of equal variance the KL divergence is the squared distance of the means times a
constant; the constant is part of `kl_coef`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distance(new: Tensor, reference: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean squared distance of each sample: [B, ...] x [B, ...] -> [B], in `dtype` or a wider one.

    Raises ValueError when shapes differ.
    """
    if new.shape != reference.shape:
        raise ValueError(f"new {tuple(new.shape)} and reference {tuple(reference.shape)} must have one shape")
    dtype = torch.promote_types(new.dtype, dtype)
    return (new.to(dtype) - reference.to(dtype)).square().flatten(1).mean(1)
