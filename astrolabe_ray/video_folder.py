"""The folder that `generate` writes: what is where, and what in it is done already.

videos/00000.mp4        or 00000-00.mp4, 00000-01.mp4, ... with several samples of a prompt
sheets/00000.png        the video on one picture
results.jsonl           a line for each video of the newest plan, sorted by id and sample
other_results.jsonl     lines of videos of earlier plans that are still there: the newest one does not ask
                        for them, or has not begun to make them anew
average_scores.json     means over results.jsonl, if the videos were scored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.run_dir import read_lines, write_json, write_lines
from astrolabe_ray.video_tasks import VideoTask

Record = dict[str, Any]
Records = dict[tuple[int, int], Record]
NEEDED = {"id", "sample", "video", "sheet", "num_frames", "settings"}
"""Of a record, what a later command reads."""


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
        """Records by (id, sample), also those that were of other plans.

        Raises ConfigError for a file that something else wrote.
        """
        return _read(self.other_results) | _read(self.results)

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

    def begin(self, kept: Sequence[Record]) -> Records:
        """From here on the results are `kept`, to which new ones will be added; returns them.

        All other records are set aside: their videos stay, for the plan that asks for them again, until
        `replace` says that they do not, and count in no average.
        """
        records = _by_key(kept)
        others = {key: record for key, record in self.read().items() if key not in records}
        _write_or_remove(self.other_results, others)
        self.write(records)
        return records

    def replace(self, tasks: Sequence[VideoTask]) -> None:
        """Void what was set aside of `tasks`, whose files will be written over from now on."""
        others = _read(self.other_results)
        left = {key: others[key] for key in others.keys() - {task.key for task in tasks}}
        if len(left) < len(others):
            _write_or_remove(self.other_results, left)

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


def _read(path: Path) -> Records:
    try:
        records = read_lines(path)
        is_ours = all(isinstance(record, dict) and record.keys() >= NEEDED for record in records)
    except ValueError:  # no JSON, or no UTF-8
        is_ours, records = False, []
    if not is_ours:
        raise ConfigError(
            f"{path} holds something else than results of generate; name another --output-dir or move it"
        )
    return _by_key(records)


def _by_key(records: Sequence[Record]) -> Records:
    return {(record["id"], record["sample"]): record for record in records}


def _ordered(records: Records) -> list[Record]:
    return [records[key] for key in sorted(records)]


def mean_scores(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each score over the records that have it, by key. Example: `{"tiny_clip": 0.81}`."""
    columns: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.get("scores", {}).items():
            columns.setdefault(key, []).append(value)
    return {key: sum(values) / len(values) for key, values in sorted(columns.items())}
