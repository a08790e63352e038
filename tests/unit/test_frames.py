"""The frames that a scorer gets to see."""

from __future__ import annotations

import numpy as np
import pytest

from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.types import FrameSpec


def video(num_frames: int, height: int, width: int) -> np.ndarray:
    """Random pixels, uint8 [F, 3, H, W]."""
    return np.random.default_rng(0).integers(0, 256, (num_frames, 3, height, width), np.uint8)


def test_the_default_view_is_the_whole_video() -> None:
    """A scorer that asks for nothing must not get a copy that differs."""
    assert np.array_equal(derive_view(video(5, 4, 6), FrameSpec()), video(5, 4, 6))


@pytest.mark.parametrize(
    ("wanted", "frames"),
    [(1, [0]), (2, [0, 32]), (3, [0, 16, 32]), (4, [0, 11, 21, 32]), (33, list(range(33)))],
)
def test_frames_are_evenly_spaced_from_first_to_last(wanted: int, frames: list[int]) -> None:
    """A scorer that never sees the last frames rewards videos that fall apart."""
    numbered = np.broadcast_to(np.arange(33, dtype=np.uint8)[:, None, None, None], (33, 3, 2, 2))
    view = derive_view(numbered, FrameSpec(num_frames=wanted))
    assert view[:, 0, 0, 0].tolist() == frames
    assert view.flags.c_contiguous


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 3), (2, 6), (None, 2)])
def test_a_smaller_view_averages_areas(height: int | None, width: int) -> None:
    """Dropping pixels makes fine patterns flicker, also when one side keeps its size."""
    pixels = video(2, 4, 6)
    rows, columns = height or 4, width
    blocks = pixels.reshape(2, 3, rows, 4 // rows, columns, 6 // columns).mean((3, 5))
    view = derive_view(pixels, FrameSpec(height=height, width=width))
    assert (view.shape, view.dtype) == ((2, 3, rows, columns), np.uint8)
    assert abs(view - blocks).max() <= 0.5


def test_a_larger_view_keeps_flat_areas_and_the_range() -> None:
    """Bicubic weights overshoot at edges; in uint8 an overshoot would wrap around."""
    pixels = np.zeros((1, 3, 8, 8), np.uint8)
    pixels[..., 4:] = 255
    view = derive_view(pixels, FrameSpec(height=16, width=16))
    assert view.shape == (1, 3, 16, 16)
    assert (view[..., :6] == 0).all()
    assert (view[..., 10:] == 255).all()
    assert (np.diff(view[0, 0, 0].astype(int)) >= 0).all()


def test_a_side_that_shrinks_is_averaged_while_the_other_grows() -> None:
    """One method for both sides would drop columns here."""
    pixels = np.zeros((1, 3, 2, 8), np.uint8)
    pixels[..., ::4] = 200  # one column in four
    view = derive_view(pixels, FrameSpec(height=4, width=2))
    assert view.shape == (1, 3, 4, 2)
    assert (view == 50).all()


def test_grayscale_is_rec_601_luma_in_three_channels() -> None:
    """A model of gray frames still takes three channels."""
    pixels = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], np.uint8)[:, :, None, None]
    view = derive_view(pixels, FrameSpec(grayscale=True))
    assert view[:, :, 0, 0].tolist() == [[76] * 3, [150] * 3, [29] * 3, [18] * 3]
