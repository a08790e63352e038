"""Unmasked attention on the best kernel that the device, the dtype and the installation allow.

Legend: B batch, L query tokens, M key tokens, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from astrolabe_ray.errors import ConfigError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, L, H, D], keys and values [B, M, H, D] -> [B, L, H, D], with scale 1 / sqrt(D)."""
KernelName = Literal["sdpa", "flash2", "flash3"]

PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface"}
"""Module that each flash kernel is imported from."""
HALF_TYPES = (torch.float16, torch.bfloat16)


def sdpa(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor) -> Tensor:
    """PyTorch's own choice among its kernels; any device and dtype."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BMHD, v_BMHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def flash2(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor) -> Tensor:
    """FlashAttention 2 (package flash-attn)."""
    from flash_attn import flash_attn_func  # type: ignore[import-not-found]

    return flash_attn_func(q_BLHD, k_BMHD, v_BMHD)


def flash3(q_BLHD: Tensor, k_BMHD: Tensor, v_BMHD: Tensor) -> Tensor:
    """FlashAttention 3 (its own module); older builds return the log-sum-exp, too."""
    from flash_attn_interface import flash_attn_func  # type: ignore[import-not-found]

    result = flash_attn_func(q_BLHD, k_BMHD, v_BMHD)
    return result[0] if isinstance(result, tuple) else result


KERNELS: dict[KernelName, Kernel] = {"sdpa": sdpa, "flash2": flash2, "flash3": flash3}


def choose_kernel(
    wanted: Literal["auto", "sdpa", "flash2", "flash3"], device: torch.device, dtype: torch.dtype
) -> KernelName:
    """Name of the kernel to use: `wanted`, or for "auto" the first of flash3, flash2, sdpa that works.

    Raises ConfigError if the wanted kernel cannot run.
    """
    if wanted == "sdpa":
        return "sdpa"
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if wanted != "auto":
        reason = obstacle(wanted, capability, dtype)
        if reason:
            raise ConfigError(f"model.attention '{wanted}' cannot run here: {reason}; use 'auto' or 'sdpa'")
        return wanted
    flash: tuple[Literal["flash3", "flash2"], ...] = ("flash3", "flash2")
    for name in flash:
        if obstacle(name, capability, dtype) is None:
            return name
    return "sdpa"


def obstacle(
    name: Literal["flash2", "flash3"],
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    has_module: Callable[[str], object] = find_spec,
) -> str | None:
    """Why a flash kernel cannot run, or None. `capability`: of the GPU, (9, 0) is Hopper; None: no GPU."""
    if capability is None:
        return "it needs an NVIDIA GPU"
    if dtype not in HALF_TYPES:
        return f"it computes in float16 or bfloat16, the model is in {str(dtype).removeprefix('torch.')}"
    if name == "flash3" and capability[0] != 9:
        return f"it is made for compute capability 9.x, this GPU has {capability[0]}.{capability[1]}"
    if capability[0] < 8:
        return f"it needs compute capability 8.0 or more, this GPU has {capability[0]}.{capability[1]}"
    if has_module(PACKAGES[name]) is None:
        return f"the module {PACKAGES[name]} is not installed"
    return None
