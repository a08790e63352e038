"""What of a plan is in the folder already: videos that are kept, contact sheets that are drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.report.run_dir import write_bytes
from astrolabe_ray.video_folder import Record, VideoFolder
from astrolabe_ray.video_tasks import VideoTask


@dataclass(frozen=True)
class Done:
    """A plan's videos, sorted out."""

    kept: tuple[tuple[VideoTask, Record], ...]
    todo: tuple[VideoTask, ...]
    sheets_due: tuple[tuple[VideoTask, Record], ...]  # of those kept, with a file to draw from
    num_differ: int  # of those to do, made before with other settings, or their file is gone
    num_others: int  # videos in the folder that are not of the plan

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.kept]

    def lines(self) -> list[str]:
        """What people are told; nothing in a new folder."""
        lines = []
        if self.kept or self.num_differ:
            num_new = len(self.todo) - self.num_differ
            lines.append(
                f"{len(self.kept)} done before and kept, {self.num_differ} made again, {num_new} new"
            )
        if self.num_others:
            lines.append(
                f"{self.num_others} that this command does not ask for, set aside in other_results.jsonl"
            )
        if self.sheets_due:
            lines.append(f"contact sheets drawn anew from their videos: {len(self.sheets_due)}")
        return lines


def sort_out(tasks: Sequence[VideoTask], folder: VideoFolder, *, with_sheets: bool) -> Done:
    """Compare `tasks` with the folder's records and files. Changes nothing."""
    records = folder.read()
    todo = [task for task in tasks if not folder.is_done(task, records.get(task.key), with_sheet=with_sheets)]
    undone = {task.key for task in todo}
    kept = [(task, records[task.key]) for task in tasks if task.key not in undone]
    return Done(
        kept=tuple(kept),
        todo=tuple(todo),
        sheets_due=tuple(pair for pair in kept if with_sheets and not folder.has_sheet(pair[1])),
        num_differ=sum(key in records for key in undone),
        num_others=len(records.keys() - {task.key for task in tasks}),
    )


def draw_missing_sheets(done: Done, folder: VideoFolder, model: ModelConfig, wiring: Wiring) -> None:
    """Draw them from the video files and note them in their records.

    Raises ConfigError for a file that can't be read.
    """
    for task, record in done.sheets_due:
        video = folder.path / record["video"]
        sheet = folder.sheet_of(video)
        write_bytes(sheet, wiring.draw_sheet(video, task.plan, model, record["num_frames"]))
        record["sheet"] = folder.relative(sheet)
