"""The layout of the picture that shows videos beside each other."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from astrolabe_ray.data.sprites.contact_sheet import CAPTION_WIDTH, GAP, PAPER, contact_sheet, write_png


def noise(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """Random video, uint8 [F, 3, H, W], with one gray level per frame to be recognised by."""
    video = np.random.default_rng(seed).integers(0, 256, (num_frames, 3, height, width), np.uint8)
    video[:, :, 0, 0] = np.arange(num_frames)[:, None]
    return video


def test_every_cell_is_the_enlarged_frame_at_its_place() -> None:
    """Frames in the wrong row or order tell a wrong story under a right caption."""
    videos = [noise(33, 4, 6, seed) for seed in (0, 1)]
    picture = contact_sheet(videos, ["one", "two"], num_columns=3, scale=2)
    assert picture.dtype == np.uint8
    assert picture.shape == (GAP + 2 * (8 + GAP), CAPTION_WIDTH + 3 * (12 + GAP), 3)
    for row, video in enumerate(videos):
        for column, frame in enumerate((0, 16, 32)):
            top, left = GAP + row * (8 + GAP), CAPTION_WIDTH + column * (12 + GAP)
            cell = picture[top : top + 8, left : left + 12]
            for y in range(8):
                for x in range(12):
                    assert cell[y, x].tolist() == video[frame, :, y // 2, x // 2].tolist()


def test_gaps_are_paper_and_captions_are_ink_inside_their_area() -> None:
    """Text that runs over the frames hides them."""
    black = np.zeros((5, 3, 32, 32), np.uint8)
    caption = "drawn: a small yellow triangle moves right and stops on a brown background"
    picture = contact_sheet([black, black], [caption, ""], num_columns=4, scale=3)
    first, second = picture[GAP : GAP + 96, :CAPTION_WIDTH], picture[2 * GAP + 96 : -GAP, :CAPTION_WIDTH]
    ink = np.argwhere((first < PAPER).any(axis=2))
    assert len(ink) > 500
    assert ink.min(axis=0)[1] >= 2
    assert ink.max(axis=0)[1] < CAPTION_WIDTH - 2, "a line is as wide as its area: it was cut"
    assert 8 < ink[:, 0].mean() - ink[:, 0].min() < 60
    assert ink[:, 0].mean() == pytest.approx(48, abs=8)  # in the middle of its row
    assert (second == PAPER).all()
    assert (picture[:GAP] == PAPER).all()
    assert (picture[GAP + 96 : 2 * GAP + 96] == PAPER).all()
    assert (picture[:, CAPTION_WIDTH + 96 : CAPTION_WIDTH + 96 + GAP] == PAPER).all()


def test_each_video_needs_its_caption() -> None:
    """A missing caption would shift all that follow."""
    with pytest.raises(ValueError, match="shorter"):
        contact_sheet([noise(3, 4, 4, 0)] * 2, ["one"])


def test_the_file_holds_the_picture_with_red_as_red(tmp_path: Path) -> None:
    """cv2 writes blue first unless told otherwise."""
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0], picture[0, 0] = 200, (1, 2, 3)
    write_png(picture, tmp_path / "new" / "sheet.png")
    read = cv2.imread(str(tmp_path / "new" / "sheet.png"))
    assert read is not None
    assert read[0, 0].tolist() == [3, 2, 1]
    assert (read[1:, :, 2] == 200).all()
    assert (tmp_path / "new" / "sheet.png").read_bytes()[:4] == b"\x89PNG"
