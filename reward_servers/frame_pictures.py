"""Frames of videos as models want them: resized, normalised and cut into patches, in batch on the device.

Legend of axes: N pictures, T pairs of pictures, C colours, H height, W width, P side of a patch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, MERGE, PAIR = 14, 2, 2
"""Of Qwen2-VL: pixels of a patch's side, patches of a token's side, pictures that a patch spans."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def fit_pixels(height: int, width: int, num_pixels: int) -> tuple[int, int]:
    """Sides that are whole tokens, about as many pixels as `num_pixels` and not more, in proportion.

    Example: 480 x 832 with a budget of 200,704 pixels becomes 336 x 588.
    """
    unit = PATCH * MERGE
    high, wide = (max(unit, round(side / unit) * unit) for side in (height, width))
    ratio = math.sqrt(height * width / num_pixels)
    if high * wide > num_pixels:
        return tuple(max(unit, math.floor(side / ratio / unit) * unit) for side in (height, width))  # type: ignore[return-value]
    if high * wide < num_pixels:
        return tuple(math.ceil(side / ratio / unit) * unit for side in (height, width))  # type: ignore[return-value]
    return high, wide


def resized(levels_NCHW: Tensor, height: int, width: int) -> Tensor:
    """8-bit levels, as float32, resized like Pillow's BICUBIC does it.

    That is with antialiasing, along rows first, rounding to levels after each of the two passes.
    """
    for size in ((levels_NCHW.shape[2], width), (height, width)):
        if tuple(levels_NCHW.shape[2:]) != size:
            levels_NCHW = F.interpolate(levels_NCHW, size, mode="bicubic", antialias=True)
            levels_NCHW = levels_NCHW.round().clamp(0, 255)
    return levels_NCHW


def normalised(levels_NCHW: Tensor) -> Tensor:
    """Levels 0..255 -> mean 0 and std 1 of CLIP's pictures, which Qwen2-VL uses, too."""
    mean, std = (
        torch.tensor(values, device=levels_NCHW.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
    )
    return (levels_NCHW / 255 - mean) / std


def patches(pictures_NTPCHW: Tensor) -> Tensor:
    """Patches [N x tokens x 4, C x 2 x 14 x 14] of normalised [N, T, 2, C, H, W], a token's four together."""
    n, t, pair, c, height, width = pictures_NTPCHW.shape
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    cut = pictures_NTPCHW.reshape(n, t, pair, c, rows, MERGE, PATCH, columns, MERGE, PATCH)
    ordered = cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return ordered.reshape(n * t * rows * columns * MERGE**2, c * pair * PATCH**2)


def grid_of(num_pairs: int, height: int, width: int) -> tuple[int, int, int]:
    """Patches along time, rows and columns."""
    return num_pairs, height // PATCH, width // PATCH


def num_tokens(grid: tuple[int, int, int]) -> int:
    """Tokens that the language model sees of a grid of patches."""
    return grid[0] * grid[1] * grid[2] // MERGE**2
