"""What a person watches while videos are made: a bar of videos and one of chunks.

On a terminal both are redrawn in place; in a log each finished video is a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astrolabe_ray.errors import DataFailure
from astrolabe_ray.video_tasks import VideoTask


class VideoConsole:
    """Fulfils `video_run.VideoProgress`. Use as a context manager."""

    def __init__(self, num_videos: int, num_chunks: int, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._videos = self._progress.add_task("videos", total=num_videos)
        self._chunks = self._progress.add_task("chunks", total=num_chunks)
        self._num_videos, self._num_finished = num_videos, 0

    def __enter__(self) -> VideoConsole:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def chunks(self, change: int) -> None:
        self._progress.advance(self._chunks, change)

    def finished(self, task: VideoTask, record: Mapping[str, Any]) -> None:
        self._num_finished += 1
        self._progress.advance(self._videos)
        scores = "".join(f", {key} {value:.3f}" for key, value in record.get("scores", {}).items())
        what = record["video"] or f"video {task.prompt_index}-{task.sample}"
        self._console.print(
            f"{self._num_finished}/{self._num_videos}  {what}: {record['num_frames']} frames in "
            f"{record['seconds']:.1f} s{scores}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def left_out(self, task: VideoTask, failure: DataFailure) -> None:
        self._console.print(
            f"prompt {task.prompt_index}, sample {task.sample}, is left out: {failure}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
