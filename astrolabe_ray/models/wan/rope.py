"""Rotary positions of latent patches in time, height and width.

Legend: T latent frames, S patches of a frame (rows * columns), L = T * S tokens, H heads, D head_dim.
A rotation is a complex number of length 1 per pair of neighbouring channels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """Channel pairs for time, height and width: time takes what thirds leave over."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


@lru_cache(maxsize=64)
def frame_rotations(
    head_dim: int, first_frame: int, num_frames: int, grid: tuple[int, int], device: torch.device
) -> Tensor:
    """Rotations [L, 1, D/2] complex64 of `num_frames` frames from `first_frame` on.

    Angles are exact to float64 and any frame index is allowed.
    """
    rows, columns = grid
    time_pairs, row_pairs, column_pairs = axis_sizes(head_dim)
    with torch.inference_mode(False):  # cached: must serve training, too
        time = _angles(torch.arange(first_frame, first_frame + num_frames), time_pairs)[:, None, None]
        row = _angles(torch.arange(rows), row_pairs)[None, :, None]
        column = _angles(torch.arange(columns), column_pairs)[None, None, :]
        shape = (num_frames, rows, columns)
        angles = torch.cat([axis.expand(*shape, -1) for axis in (time, row, column)], dim=-1)
        return _unit(angles.flatten(0, 2)[:, None], device)


@lru_cache(maxsize=64)
def time_shift(head_dim: int, num_frames: int, device: torch.device) -> Tensor:
    """Rotation [D/2] complex64 that moves a rotated key on by `num_frames` frames."""
    time_pairs, row_pairs, column_pairs = axis_sizes(head_dim)
    with torch.inference_mode(False):
        time = _angles(torch.tensor([num_frames]), time_pairs)[0]
        return _unit(torch.cat([time, time.new_zeros(row_pairs + column_pairs)]), device)


def rotate(x_BLHD: Tensor, rotations: Tensor) -> Tensor:
    """Turn channel pairs of `x_BLHD` by `rotations` (broadcast over batch and heads), in float32."""
    pairs = torch.view_as_complex(x_BLHD.float().view(*x_BLHD.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations).flatten(-2).to(x_BLHD.dtype)


def _angles(positions: Tensor, num_pairs: int) -> Tensor:
    """Angles [positions, num_pairs] in float64: position * 10000^(-i / num_pairs)."""
    exponents = torch.arange(num_pairs, dtype=torch.float64) / num_pairs
    return positions.double()[:, None] * torch.pow(10000.0, -exponents)


def _unit(angles: Tensor, device: torch.device) -> Tensor:
    """Sent without waiting for the device: a long video has new positions in each chunk."""
    rotations = torch.empty(angles.shape, dtype=torch.complex64, pin_memory=device.type == "cuda")
    rotations.copy_(torch.polar(torch.ones_like(angles), angles))
    return rotations.to(device, non_blocking=True)
