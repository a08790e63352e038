"""Videos on one picture: a row for each, its caption left, its frames from first to last.

Legend: F frames, H height, W width.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

PAPER, INK = 255, 40  # gray levels
GAP = 6  # pixels between frames and rows
CAPTION_WIDTH = 200  # pixels
LINE_HEIGHT, LINE_LENGTH = 16, 26  # pixels, characters
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def contact_sheet(
    videos: Sequence[np.ndarray], captions: Sequence[str], *, num_columns: int = 9, scale: int = 3
) -> np.ndarray:
    """Picture uint8 [H, W, 3] of `videos`, uint8 [F, 3, h, w] each and all of one height and width.

    `num_columns` frames of a video, evenly spaced with first and last, every pixel `scale` x `scale`.
    """
    rows = [_row(video, caption, num_columns, scale) for video, caption in zip(videos, captions, strict=True)]
    gap = np.full((GAP, rows[0].shape[1], 3), PAPER, np.uint8)
    return np.concatenate([gap, *(part for row in rows for part in (row, gap))])


def write_png(picture: np.ndarray, file: Path) -> None:
    """Write `picture` uint8 [H, W, 3] (red, green, blue). Raises OSError if the file can't be written."""
    is_done, content = cv2.imencode(".png", picture[..., ::-1])
    assert is_done, f"cv2 can't write a picture of shape {picture.shape}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.tobytes())


def _row(video: np.ndarray, caption: str, num_columns: int, scale: int) -> np.ndarray:
    chosen = video[np.linspace(0, len(video) - 1, num_columns).round().astype(int)]
    frames = chosen.transpose(0, 2, 3, 1).repeat(scale, axis=1).repeat(scale, axis=2)
    gap = np.full((frames.shape[1], GAP, 3), PAPER, np.uint8)
    cells = [part for frame in frames for part in (frame, gap)]
    return np.concatenate([_written(caption, frames.shape[1]), *cells], axis=1)


def _written(caption: str, height: int) -> np.ndarray:
    """Caption in the middle of an area [height, CAPTION_WIDTH, 3]."""
    area = np.full((height, CAPTION_WIDTH, 3), PAPER, np.uint8)
    lines = textwrap.wrap(caption, LINE_LENGTH)
    top = (height - LINE_HEIGHT * len(lines)) // 2
    for number, line in enumerate(lines, start=1):
        place = (GAP, top + number * LINE_HEIGHT - 4)
        cv2.putText(area, line, place, FONT, FONT_SCALE, (INK,) * 3, 1, cv2.LINE_AA)
    return area
