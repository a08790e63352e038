"""Frames resized, normalised and cut on the device against Pillow and transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reward_servers.frame_pictures import (
    CLIP_STD,
    fit_pixels,
    grid_of,
    normalised,
    patches,
    resized,
    resized_part,
)

BUDGET = 256 * 28 * 28


def frame(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Structure at all scales, with saturated edges; uint8 [3, H, W]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-40, 41, smooth.shape)
    noisy[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 255)
    return noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def test_a_wan_frame_becomes_the_size_that_the_models_were_trained_with() -> None:
    """252 tokens at 336 x 588; one row more would be another model input."""
    assert fit_pixels(480, 832, BUDGET) == (336, 588)
    assert grid_of(1, 336, 588) == (1, 24, 42)


@pytest.mark.parametrize("size", [(480, 832), (832, 480), (32, 32), (336, 588), (720, 1280)])
def test_pictures_are_those_of_the_processor_with_pillow(size: tuple[int, int]) -> None:
    """Within one 8-bit level of Pillow's result (1 / 255 / 0.26 after normalising), equal in 99.5 % of the
    values: a resize without antialiasing or in another order differs by tens of levels."""
    pixels = frame(*size)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": BUDGET, "longest_edge": BUDGET})
    theirs = processor(images=Image.fromarray(pixels.transpose(1, 2, 0)), return_tensors="pt")
    height, width = fit_pixels(*size, BUDGET)
    assert tuple(theirs["image_grid_thw"][0].tolist()) == grid_of(1, height, width)
    picture = normalised(resized(torch.from_numpy(pixels)[None].float(), height, width))
    ours = patches(picture[:, None, None].expand(-1, 1, 2, -1, -1, -1))
    difference = (ours - theirs["pixel_values"]).abs()
    assert difference.max() < 1.01 / 255 / min(CLIP_STD)
    assert (difference > 1e-5).float().mean() < 0.005


def test_pictures_of_a_batch_are_those_of_each_alone() -> None:
    """A mixed-up axis would give one video the patches of another."""
    both = np.stack([frame(40, 64, seed=1), frame(40, 64, seed=2)])
    levels = torch.from_numpy(both).float()
    pairs = normalised(resized(levels, 56, 84))[:, None, None].expand(-1, 1, 2, -1, -1, -1)
    together = patches(pairs).chunk(2)
    for i in range(2):
        assert torch.equal(together[i], patches(pairs[i : i + 1]))


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (20, 150), (150, 20), (32, 32), (33, 65), (8, 4000)])
def test_a_part_of_a_resized_picture_is_cut_from_the_whole_one(size: tuple[int, int]) -> None:
    """The middle of a picture that was scaled whole first, which for a long one takes gigabytes. Within one
    8-bit level, equal in 99 % of the values."""
    levels = torch.from_numpy(frame(*size))[None].float()
    height, width = (int(side * 32 / min(size)) for side in size)
    top, left = (height - 32) // 2, (width - 32) // 2
    whole = resized(levels, height, width)[..., top : top + 32, left : left + 32]
    part = resized_part(resized_part(levels, 3, width, left, 32), 2, height, top, 32)
    assert part.shape == whole.shape
    difference = (part - whole).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("size", [(8, 261_120), (261_120, 8), (28, 80_920)])
def test_no_shape_of_a_picture_exceeds_the_budget(size: tuple[int, int]) -> None:
    """A picture narrower than a token, 2890 tokens for a budget of 256."""
    height, width = fit_pixels(*size, BUDGET)
    assert height * width <= BUDGET and height % 28 == width % 28 == 0
