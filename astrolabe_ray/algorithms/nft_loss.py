"""The DiffusionNFT loss in x0-space (arXiv 2509.16117 eq. 5-7, with Astrolabe's x0 predictions), and in
v-space with the adaptive weight of DiffusionNFT's release.

Legend: B samples; any further axes are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_ERROR = 1e-5
"""Smallest mean error that a branch of the adaptive loss is divided by."""


def nft_weight(advantage_B: Tensor, *, adv_clip_max: float) -> Tensor:
    """Optimality probability r in [0, 1] of each sample: clip(advantage, +-max) / (2 max) + 0.5."""
    return advantage_B.clamp(-adv_clip_max, adv_clip_max) / (2 * adv_clip_max) + 0.5


def nft_loss(
    new: Tensor,
    old: Tensor,
    target: Tensor,
    weight_B: Tensor,
    *,
    nft_beta: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Loss of each sample [B]: r |pos - target|^2 + (1 - r) |neg - target|^2, means over its elements.

    `new`, `old`, `target` [B, ...]: x0 predictions of the trained and of the behaviour policy, and
    the clean sample. pos = beta new + (1 - beta) old, neg = (1 + beta) old - beta new. The gradient
    flows into `new` only. Computed in `dtype` or the inputs' wider type.
    Raises ValueError when shapes differ.
    """
    _check(new, old, target, weight_B)
    dtype = torch.promote_types(new.dtype, dtype)
    base = (old.detach() - target).to(dtype)
    step = nft_beta * (new.to(dtype) - old.detach().to(dtype))
    positive_B = (base + step).square().flatten(1).mean(1)
    negative_B = (base - step).square().flatten(1).mean(1)
    return weight_B * positive_B + (1 - weight_B) * negative_B


def adaptive_nft_loss(
    new: Tensor,
    old: Tensor,
    target: Tensor,
    sigma_B: Tensor,
    weight_B: Tensor,
    *,
    nft_beta: float,
    adv_clip_max: float,
) -> Tensor:
    """Loss of each sample [B] on flows, each branch divided by its own mean error.

    `new`, `old` [B, ...]: flows of the trained and of the behaviour policy; `target`: the sample's flow
    eps - x0; `sigma_B`: share of noise. With e+ = sigma (beta new + (1 - beta) old - target), the x0 error of
    the positive flow, and e- that of (1 + beta) old - beta new:
    adv_clip_max / beta (r mean e+^2 / mean|e+| + (1 - r) mean e-^2 / mean|e-|), where mean|e|, at least 1e-5,
    carries no gradient. Computed in float32 or the inputs' wider type.
    Raises ValueError when shapes differ.
    """
    _check(new, old, target, weight_B)
    dtype = torch.promote_types(new.dtype, torch.float32)
    sigma = sigma_B.to(dtype).view(-1, *[1] * (new.dim() - 1))
    base = sigma * (old.detach().to(dtype) - target.to(dtype))
    step = sigma * nft_beta * (new.to(dtype) - old.detach().to(dtype))
    positive_B, negative_B = (_self_normalised(error) for error in (base + step, base - step))
    return (weight_B * positive_B + (1 - weight_B) * negative_B) * (adv_clip_max / nft_beta)


def _self_normalised(error: Tensor) -> Tensor:
    """[B]: mean square of each sample divided by its mean size; summed in float64, like the release."""
    size_B = error.detach().double().abs().flatten(1).mean(1).clamp(min=MIN_ERROR)
    return error.square().flatten(1).mean(1) / size_B.to(error.dtype)


def _check(new: Tensor, old: Tensor, target: Tensor, weight_B: Tensor) -> None:
    if not new.shape == old.shape == target.shape or weight_B.shape != new.shape[:1]:
        raise ValueError(
            f"new {tuple(new.shape)}, old {tuple(old.shape)} and target {tuple(target.shape)} must have one "
            f"shape and the weight {tuple(weight_B.shape)} one entry per sample"
        )
