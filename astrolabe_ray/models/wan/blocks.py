"""Layers of the causal Wan transformer; attribute names are those of the released checkpoints.

Legend: B batch, T latent frames, S patches of a frame, L tokens, H heads, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.attention import Attend
from astrolabe_ray.models.wan.kernels import Kernel, sdpa

Steering = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Shift, scale and gate of self-attention, then of the feed-forward, for a timestep (scale: 1 + learned)."""


class PatchEmbedding(nn.Conv3d):
    """Non-overlapping patches [B, T, C, H, W] -> [B, T, S, D]; a convolution by name and weights only."""

    def __init__(self, architecture: WanArchitecture) -> None:
        super().__init__(architecture.in_channels, architecture.dim, architecture.patch, architecture.patch)

    def forward(self, x_BTCHW: Tensor) -> Tensor:  # type: ignore[override]
        _, rows, columns = self.kernel_size
        x = x_BTCHW.unflatten(-2, (-1, rows)).unflatten(-1, (-1, columns))  # B T C h rows w columns
        patches = x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class RMSNorm(nn.Module):
    """Scale by the root mean square over all heads together, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Query, key, value and output projections with normalised queries and keys."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def query(self, x_BLD: Tensor) -> Tensor:
        """Queries [B, L, H, D/H]."""
        return self._by_head(self.norm_q(self.q(x_BLD)))

    def keys_values(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, L, H, D/H]."""
        return self._by_head(self.norm_k(self.k(x_BLD))), self._by_head(self.v(x_BLD))

    def _by_head(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.view(*x_BLD.shape[:2], self.num_heads, -1)


class SelfAttention(Attention):
    """Attention among the frames of the video; `self_attention` decides which see which."""

    def forward(self, x_BLD: Tensor, self_attention: Attend) -> Tensor:
        return self.o(self_attention(self.query(x_BLD), *self.keys_values(x_BLD)).flatten(2))


class CrossAttention(Attention):
    """Attention to all text tokens, padding included."""

    kernel: Kernel = staticmethod(sdpa)

    def forward(self, x_BLD: Tensor, text: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """`text`: embedded text [B, L, D], or its keys and values from `keys_values`."""
        keys, values = text if isinstance(text, tuple) else self.keys_values(text)
        return self.o(self.kernel(self.query(x_BLD), keys, values).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, steered by each frame's timestep."""

    def __init__(self, architecture: WanArchitecture) -> None:
        super().__init__()
        dim, heads, eps = architecture.dim, architecture.num_heads, architecture.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = CrossAttention(dim, heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, architecture.ffn_dim),
            nn.GELU(approximate="tanh"),
            nn.Linear(architecture.ffn_dim, dim),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, dim))

    def steering(self, e: Tensor) -> Steering:
        """What the time projection `e` [..., 6, D] makes of this block: six tensors [..., D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (e + self.modulation[0]).unbind(-2)
        return shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2

    def forward(
        self, x_BTSD: Tensor, e_BT16D: Tensor, text: Tensor | tuple[Tensor, Tensor], self_attention: Attend
    ) -> Tensor:
        return self.steered(x_BTSD, self.steering(e_BT16D), text, self_attention)

    def steered(
        self,
        x_BTSD: Tensor,
        steering: Steering,
        text: Tensor | tuple[Tensor, Tensor],
        self_attention: Attend,
    ) -> Tensor:
        """`forward` with a `steering` made before: tensors [B, T, 1, D], or [D] if all frames share it."""
        shift1, scale1, gate1, shift2, scale2, gate2 = steering
        y_BTSD = modulated(self.norm1, x_BTSD, shift1, scale1)
        y_BTSD = self.self_attn(y_BTSD.flatten(1, 2), self_attention).view_as(x_BTSD)
        x_BTSD = torch.addcmul(x_BTSD, y_BTSD, gate1)
        y_BTSD = self.cross_attn(self.norm3(x_BTSD).flatten(1, 2), text).view_as(x_BTSD)
        x_BTSD = x_BTSD + y_BTSD
        y_BTSD = self.ffn(modulated(self.norm2, x_BTSD, shift2, scale2))
        return torch.addcmul(x_BTSD, y_BTSD, gate2)


class FlowHead(nn.Module):
    """Tokens back to latent pixels."""

    def __init__(self, architecture: WanArchitecture) -> None:
        super().__init__()
        self.patch = architecture.patch[1:]
        self.norm = nn.LayerNorm(architecture.dim, architecture.eps, elementwise_affine=False)
        self.head = nn.Linear(architecture.dim, architecture.out_channels * self.patch[0] * self.patch[1])
        self.modulation = nn.Parameter(torch.zeros(1, 2, architecture.dim))

    def steering(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale [..., D] that the time embedding `e` [..., D] gives."""
        shift, scale = (e.unsqueeze(-2) + self.modulation[0]).unbind(-2)
        return shift, 1 + scale

    def forward(self, x_BTSD: Tensor, e_BT1D: Tensor, grid: tuple[int, int]) -> Tensor:
        """Flow [B, T, C, H, W] of `grid` patch rows and columns."""
        return self.steered(x_BTSD, self.steering(e_BT1D), grid)

    def steered(self, x_BTSD: Tensor, steering: tuple[Tensor, Tensor], grid: tuple[int, int]) -> Tensor:
        """`forward` with a `steering` made before: tensors [B, T, 1, D] or [D]."""
        x = self.head(modulated(self.norm, x_BTSD, *steering))
        x = x.unflatten(-1, (*self.patch, -1)).unflatten(2, grid)  # B T h w rows columns C
        return x.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def modulated(norm: nn.LayerNorm, x_BTSD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised `x_BTSD` times `scale` plus `shift`, which are [B, T, 1, D] or [D]."""
    if scale.dim() == 1:
        return F.layer_norm(x_BTSD, scale.shape, scale, shift, norm.eps)
    return torch.addcmul(shift, norm(x_BTSD), scale)


def timestep_sinusoid(t: Tensor, freq_dim: int) -> Tensor:
    """Cosines then sines [..., freq_dim] of timesteps (0..1000), computed and returned in float64."""
    half = freq_dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=t.device) / half
    angles = t.double().unsqueeze(-1) * torch.pow(10000.0, -exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
