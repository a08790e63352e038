"""A video on one picture: a row for each scene, frames from its first to its last, and how it begins.

Legend: F frames, H height, W width.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.video import frames_of
from astrolabe_ray.video_tasks import FRAMES_PER_LATENT_FRAME, VideoPlan

NUM_COLUMNS = 10
NUM_DENSE = 4  # a quarter of a second apart
CELL_WIDTH = 96  # pixels at least; larger frames are made smaller
GAP, TITLE_HEIGHT, TIME_HEIGHT, MARK_WIDTH = 6, 22, 16, 8
PAPER, INK = 255, 40  # gray levels
START, SOFT, CUT = (150, 150, 150), (230, 150, 30), (205, 40, 40)
FONT, FONT_SCALE, LETTER_WIDTH = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 7


class SceneSheet:
    """Keeps the frames that will be shown while a video passes by, and draws them.

    Memory: NUM_COLUMNS small frames for each scene, whatever the length.
    """

    def __init__(self, plan: VideoPlan, *, chunk_frames: int, fps: int, num_given: int = 0) -> None:
        """`num_given`: latent frames that the video goes on from; they have a row of their own."""
        self._plan, self._fps = plan, fps
        edges = [plan.first_frame(scene.start_chunk, chunk_frames, num_given) for scene in plan.scenes]
        edges = [0, *edges] if num_given else edges
        edges.append(plan.first_frame(plan.num_chunks, chunk_frames, num_given))
        self._rows = [_shown(first, last - 1, fps) for first, last in pairwise(edges)]
        self._has_given = num_given > 0
        self._wanted = {frame for row in self._rows for frame in row}
        self._cells: dict[int, np.ndarray] = {}
        self.num_seen = 0

    def add(self, video: np.ndarray) -> None:
        """The next frames, uint8 [F, 3, H, W]."""
        for number, frame in enumerate(video, start=self.num_seen):
            if number in self._wanted:
                self._cells[number] = _cell(frame.transpose(1, 2, 0))
        self.num_seen += len(video)

    def picture(self) -> np.ndarray:
        """uint8 [H, W, 3]; call after the last frame."""
        assert self._cells.keys() == self._wanted, f"{len(self._cells)} of {len(self._wanted)} frames seen"
        titles = ["given  |  what the video goes on from"] if self._has_given else []
        marks = [START] * len(titles)
        for number, scene in enumerate(self._plan.scenes, start=1):
            is_first = number == 1
            begins = "start" if is_first else "HARD CUT" if scene.is_cut else "soft transition"
            titles.append(f"scene {number}  |  {begins}  |  {scene.prompt}")
            marks.append(START if is_first else CUT if scene.is_cut else SOFT)
        rows = [self._row(*parts) for parts in zip(titles, marks, self._rows, strict=True)]
        return np.concatenate(rows)

    def png(self) -> bytes:
        is_done, content = cv2.imencode(".png", self.picture()[..., ::-1])
        assert is_done, "cv2 can't write a picture"
        return content.tobytes()

    def _row(self, title: str, mark: tuple[int, int, int], frames: list[int]) -> np.ndarray:
        cells = [_timed(self._cells[frame], frame / self._fps) for frame in frames]
        gap = _blank(cells[0].shape[0], GAP)
        pictures = np.concatenate([part for cell in cells for part in (cell, gap)], axis=1)
        body = np.concatenate([_written(title, TITLE_HEIGHT, pictures.shape[1]), pictures], axis=0)
        bar = _blank(len(body), MARK_WIDTH + GAP)
        bar[GAP:, :MARK_WIDTH] = mark
        return np.concatenate([bar, body], axis=1)


def sheet_of_file(path: Path, plan: VideoPlan, *, chunk_frames: int, fps: int, num_frames: int) -> bytes:
    """The sheet, as png, of a finished video of `num_frames`, those that it went on from included.

    Raises ConfigError for a file that can't be read or has another length.
    """
    num_given = (num_frames - plan.first_frame(plan.num_chunks, chunk_frames)) // FRAMES_PER_LATENT_FRAME
    sheet = SceneSheet(plan, chunk_frames=chunk_frames, fps=fps, num_given=num_given)
    problem = ""
    try:
        for frame in frames_of(path):
            sheet.add(frame[None])
    except (OSError, ValueError) as reason:  # PyAV's errors are both
        problem = str(reason)
    if not problem and sheet.num_seen != num_frames:
        problem = f"it has {sheet.num_seen} frames and not {num_frames}"
    if problem:
        raise ConfigError(f"can't draw a contact sheet of {path}: {problem}; delete it, and it is made again")
    return sheet.png()


def _shown(first: int, last: int, fps: int) -> list[int]:
    """Frames of a row: NUM_DENSE at its beginning, where the transition is, the others evenly spaced."""
    dense = [first + number * fps // 4 for number in range(NUM_DENSE)]
    if last - first < NUM_COLUMNS * fps // 4:
        return np.linspace(first, last, NUM_COLUMNS).round().astype(int).tolist()
    rest = np.linspace(dense[-1], last, NUM_COLUMNS - NUM_DENSE + 1)[1:]
    return dense + rest.round().astype(int).tolist()


def _cell(frame_HWC: np.ndarray) -> np.ndarray:
    """Enlarged by a whole number, or made smaller, to about CELL_WIDTH."""
    height, width = frame_HWC.shape[:2]
    if width <= CELL_WIDTH:
        factor = CELL_WIDTH // width
        return frame_HWC.repeat(factor, axis=0).repeat(factor, axis=1)
    size = (CELL_WIDTH, max(1, round(height * CELL_WIDTH / width)))
    return cv2.resize(np.ascontiguousarray(frame_HWC), size, interpolation=cv2.INTER_AREA)


def _timed(cell: np.ndarray, seconds: float) -> np.ndarray:
    """A cell with its time below it."""
    return np.concatenate([cell, _written(f"{seconds:.1f} s", TIME_HEIGHT, cell.shape[1])])


def _written(text: str, height: int, width: int) -> np.ndarray:
    area = _blank(height, width)
    shown = text if len(text) * LETTER_WIDTH <= width else text[: max(0, width // LETTER_WIDTH - 3)] + "..."
    cv2.putText(area, shown, (1, height - 5), FONT, FONT_SCALE, (INK,) * 3, 1, cv2.LINE_AA)
    return area


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)
