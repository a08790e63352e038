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

    A picture that would be narrower than a token loses its proportion, not the bound.

    Example: 480 x 832 with a budget of 200,704 pixels becomes 336 x 588.
    """
    unit = PATCH * MERGE
    high, wide = (max(unit, round(side / unit) * unit) for side in (height, width))
    ratio = math.sqrt(height * width / num_pixels)
    if high * wide > num_pixels:
        longest = max(unit, num_pixels // unit // unit * unit)  # beside a side of one token
        return tuple(  # type: ignore[return-value]
            min(longest, max(unit, math.floor(side / ratio / unit) * unit)) for side in (height, width)
        )
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


def resized_part(levels_NCHW: Tensor, axis: int, size: int, first: int, count: int) -> Tensor:
    """`count` lines from `first` of what `resized` makes along one axis (2 or 3) of length `size`.

    Only the lines of the picture that they are made of are looked at.
    """
    length = levels_NCHW.shape[axis]
    if (length, first) == (size, 0) and count == size:
        return levels_NCHW
    scale = length / size
    reach = 2 * max(scale, 1)
    start = max(0, math.floor((first + 0.5) * scale - reach) - 1)
    end = min(length, math.ceil((first + count - 0.5) * scale + reach) + 1)
    middles = (torch.arange(first, first + count, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(start, end, dtype=torch.float64) + 0.5
    weights = _bicubic((places - middles[:, None]) / max(scale, 1))
    weights = (weights / weights.sum(1, keepdim=True)).to(levels_NCHW)
    part = levels_NCHW.narrow(axis, start, end - start).transpose(axis, 3)
    return (part @ weights.T).transpose(axis, 3).round().clamp(0, 255)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, which Pillow uses; 0 from a distance of 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


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
