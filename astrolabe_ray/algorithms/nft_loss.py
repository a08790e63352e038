"""The DiffusionNFT loss in x0-space (arXiv 2509.16117 eq. 5-7, with Astrolabe's x0 predictions).

Legend: B samples; any further axes are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor


def nft_weight(advantage_B: Tensor, *, adv_clip_max: float) -> Tensor:
    """Optimality probability r in [0, 1] of each sample: clip(advantage, +-max) / (2 max) + 0.5."""
    return advantage_B.clamp(-adv_clip_max, adv_clip_max) / (2 * adv_clip_max) + 0.5


def nft_loss(new: Tensor, old: Tensor, target: Tensor, weight_B: Tensor, *, nft_beta: float) -> Tensor:
    """Loss of each sample [B]: r |pos - target|^2 + (1 - r) |neg - target|^2, means over its elements.

    `new`, `old`, `target` [B, ...]: x0 predictions of the trained and of the behaviour policy, and
    the clean sample. pos = beta new + (1 - beta) old, neg = (1 + beta) old - beta new. The gradient
    flows into `new` only. Computed in float32 or the inputs' wider type.
    Raises ValueError when shapes differ.
    """
    if not new.shape == old.shape == target.shape or weight_B.shape != new.shape[:1]:
        raise ValueError(
            f"new {tuple(new.shape)}, old {tuple(old.shape)} and target {tuple(target.shape)} must have one "
            f"shape and the weight {tuple(weight_B.shape)} one entry per sample"
        )
    dtype = torch.promote_types(new.dtype, torch.float32)
    base = (old.detach() - target).to(dtype)
    step = nft_beta * (new.to(dtype) - old.detach().to(dtype))
    positive_B = (base + step).square().flatten(1).mean(1)
    negative_B = (base - step).square().flatten(1).mean(1)
    return weight_B * positive_B + (1 - weight_B) * negative_B
