"""The folder that `generate` writes: what is where, and what in it is done already.

videos/00000.mp4        or 00000-00.mp4, 00000-01.mp4, ... with several samples of a prompt
sheets/00000.png        the video on one picture
results.jsonl           a line for each video, sorted by id and sample
average_scores.json     if the videos were scored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe_ray.report.run_dir import read_lines, write_json, write_lines
from astrolabe_ray.video_tasks import VideoTask


@dataclass(frozen=True)
class VideoFolder:
    """Files are written whole or not at all, except videos that are streamed."""

    path: Path
    samples_per_prompt: int = 1

    def video(self, task: VideoTask) -> Path:
        return self.path / "videos" / f"{self._stem(task)}.mp4"

    def sheet(self, task: VideoTask) -> Path:
        return self.path / "sheets" / f"{self._stem(task)}.png"

    @property
    def results(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def average_scores(self) -> Path:
        return self.path / "average_scores.json"

    def read(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Records by (id, sample)."""
        return {(record["id"], record["sample"]): record for record in read_lines(self.results)}

    def is_done(self, task: VideoTask, record: Mapping[str, Any] | None) -> bool:
        """Whether `record` is of exactly this video, and the file that it names is there."""
        if record is None or record["settings"] != task.fingerprint:
            return False
        return record["video"] is None or (self.path / record["video"]).is_file()

    def write(self, records: Mapping[tuple[int, int], Mapping[str, Any]]) -> None:
        """All records, and the mean of each score over those that have it."""
        ordered = [records[key] for key in sorted(records)]
        write_lines(self.results, ordered)
        means = mean_scores(ordered)
        if means:
            write_json(self.average_scores, means)
        else:
            self.average_scores.unlink(missing_ok=True)

    def _stem(self, task: VideoTask) -> str:
        sample = f"-{task.sample:02d}" if self.samples_per_prompt > 1 else ""
        return f"{task.prompt_index:05d}{sample}"


class GrowingFile:
    """A file that is written part by part and can be read meanwhile; begun anew, it loses what it had."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")

    def add(self, part: bytes) -> None:
        self._file.write(part)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each score over the records that have it, by key. Example: `{"tiny_clip": 0.81}`."""
    columns: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.get("scores", {}).items():
            columns.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in sorted(columns.items())}
