"""The folder that `generate` writes: what is where, and what in it is done already.

videos/00000.mp4        or 00000-00.mp4, 00000-01.mp4, ... with several samples of a prompt
sheets/00000.png        the video on one picture
results.jsonl           a line for each video of the newest plan, sorted by id and sample
other_results.jsonl     lines of videos of earlier plans that the newest one does not ask for
average_scores.json     means over results.jsonl, if the videos were scored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe_ray.report.run_dir import read_lines, write_json, write_lines
from astrolabe_ray.video_tasks import VideoTask

Record = dict[str, Any]
Records = dict[tuple[int, int], Record]


@dataclass(frozen=True)
class VideoFolder:
    """Files are written whole or not at all, except videos that are streamed."""

    path: Path
    samples_per_prompt: int = 1

    def video(self, task: VideoTask) -> Path:
        sample = f"-{task.sample:02d}" if self.samples_per_prompt > 1 else ""
        return self.path / "videos" / f"{task.prompt_index:05d}{sample}.mp4"

    def sheet(self, task: VideoTask) -> Path:
        return self.sheet_of(self.video(task))

    def sheet_of(self, video: Path) -> Path:
        return self.path / "sheets" / f"{video.stem}.png"

    @property
    def results(self) -> Path:
        return self.path / "results.jsonl"

    @property
    def other_results(self) -> Path:
        return self.path / "other_results.jsonl"

    @property
    def average_scores(self) -> Path:
        return self.path / "average_scores.json"

    def read(self) -> Records:
        """Records by (id, sample), also those that were of other plans."""
        lines = [*read_lines(self.other_results), *read_lines(self.results)]
        return {(record["id"], record["sample"]): record for record in lines}

    def is_done(self, task: VideoTask, record: Mapping[str, Any] | None, *, with_sheet: bool) -> bool:
        """Whether `record` is of exactly this video, and its file is there.

        A sheet that is asked for must be there, too, if there is no file that it could be drawn from.
        """
        if record is None or record["settings"] != task.fingerprint:
            return False
        if record["video"] is None:
            return not with_sheet or self.has_sheet(record)
        return (self.path / record["video"]).is_file()

    def has_sheet(self, record: Mapping[str, Any]) -> bool:
        return record["sheet"] is not None and (self.path / record["sheet"]).is_file()

    def relative(self, path: Path) -> str:
        """`path` as records name it."""
        return path.relative_to(self.path).as_posix()

    def begin(self, kept: Sequence[Record], todo: Sequence[VideoTask]) -> Records:
        """From here on the results are `kept`, to which those of `todo` will be added; returns them.

        What `todo` had is void at once. Records of neither are set aside: their videos stay, for the plan
        that asks for them again, and count in no average.
        """
        records: Records = {(record["id"], record["sample"]): record for record in kept}
        asked = records.keys() | {task.key for task in todo}
        others = {key: record for key, record in self.read().items() if key not in asked}
        _write_or_remove(self.other_results, others)
        self.write(records)
        return records

    def write(self, records: Records) -> None:
        """The results of the plan, and the mean of each score over those that have it."""
        write_lines(self.results, _ordered(records))
        means = mean_scores(_ordered(records))
        if means:
            write_json(self.average_scores, means)
        else:
            self.average_scores.unlink(missing_ok=True)


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


def _write_or_remove(path: Path, records: Records) -> None:
    if records:
        write_lines(path, _ordered(records))
    else:
        path.unlink(missing_ok=True)


def _ordered(records: Records) -> list[Record]:
    return [records[key] for key in sorted(records)]


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each score over the records that have it, by key. Example: `{"tiny_clip": 0.81}`."""
    columns: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.get("scores", {}).items():
            columns.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in sorted(columns.items())}
