"""Everything a run tells about itself, to its files, to people, and to the sinks that a run has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from astrolabe_ray.metrics.console import RunConsole
from astrolabe_ray.metrics.module_gradients import module_line, without_modules
from astrolabe_ray.report.run_dir import RunDir, append_line, read_lines, write_lines
from astrolabe_ray.report.shown_videos import write_shown_videos
from astrolabe_ray.report.statistics import compare, is_paired
from astrolabe_ray.types import Alarm, Evaluation, Span


class MetricsSink(Protocol):
    """Takes the numbers of each step, and the numbers and videos of each evaluation.

    Steps never go back: an evaluation beside training arrives at the step that training is at by then, and
    says in `heldout/step` whose it is.
    """

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """`videos` maps a caption to an mp4 file."""
        ...

    def close(self) -> None: ...


class RunRecorder:
    """Fulfils `roles.RunObserver`: files and videos of the run's folder, console, sinks."""

    def __init__(
        self,
        run_dir: RunDir,
        console: RunConsole,
        sinks: Sequence[MetricsSink],
        earlier: Sequence[Evaluation] = (),
    ) -> None:
        """`earlier`: evaluations before this part of the run."""
        self._first = next((e for e in earlier if e.phase == "before"), None)
        self._run_dir, self._console, self._sinks = run_dir, console, tuple(sinks)
        self._last_step = -1.0

    def phase(self, name: str, total: int) -> None:
        self._console.phase(name, total)

    def advance(self, count: int = 1) -> None:
        self._console.advance(count)

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step that is made again, since the learner was lost, replaces the earlier one and all after it in
        the files. Sinks keep the first."""
        is_again, step = metrics["step"] <= self._last_step, metrics["step"]
        if is_again:
            for file in (self._run_dir.metrics, self._run_dir.gradients):
                _leave_out(file, lambda row: row["step"] >= step)
        told, modules = without_modules(metrics), module_line(metrics)
        append_line(self._run_dir.metrics, {"time": time.time(), **told})
        if modules:
            append_line(self._run_dir.gradients, {"step": step, **modules})
        self._console.step(told)
        for sink in () if is_again else self._sinks:
            sink.log(told, int(step))
        self._last_step = max(self._last_step, step)

    def evaluated(self, evaluation: Evaluation) -> None:
        records = [
            {name: value for name, value in vars(record).items() if name != "video"}
            for record in evaluation.records
        ]
        _leave_out(self._run_dir.evaluations, lambda row: row["phase"] == evaluation.phase)
        append_line(
            self._run_dir.evaluations,
            {
                "phase": evaluation.phase,
                "step": evaluation.version.step,
                "diversity": evaluation.diversity,
                "looks": evaluation.looks,
                "left_out": list(evaluation.left_out),
                "records": records,
            },
        )
        if evaluation.phase == "before":
            self._first = evaluation
        compared: dict[str, dict[str, float]] = {}
        if self._first is not None and evaluation is not self._first and is_paired(self._first, evaluation):
            compared = compare(self._first, evaluation)
        videos = write_shown_videos(self._run_dir, evaluation)
        step = max(int(self._last_step), evaluation.version.step)
        for sink in self._sinks:
            sink.log(heldout_metrics(evaluation) | gains(compared), step)
            if videos:
                sink.log_videos(videos, step)
        self._console.evaluated(evaluation, compared.get("total"))

    def alarmed(self, alarm: Alarm) -> None:
        append_line(self._run_dir.alarms, asdict(alarm))
        self._console.alarmed(alarm)

    def note(self, text: str) -> None:
        self._console.say(text)

    def span(self, span: Span) -> None:
        append_line(self._run_dir.timeline, asdict(span))

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def gains(compared: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Of each reward against the first evaluation: difference, its 95 % interval, share of better videos."""
    metrics = {}
    for key, values in compared.items():
        metrics[f"heldout_gain/{key}"] = values["paired_diff_mean"]
        metrics[f"heldout_gain_ci95/{key}"] = values["paired_diff_ci95"]
        metrics[f"heldout_win_rate/{key}"] = values["win_rate"]
    return metrics


def _leave_out(path: Path, is_void: Callable[[Mapping[str, Any]], bool]) -> None:
    """Take the records of steps that were lost out of a file."""
    records = read_lines(path)
    kept = [record for record in records if not is_void(record)]
    if len(kept) < len(records):
        write_lines(path, kept)


def heldout_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Mean of the total and of each reward over the held-out videos, their diversity, and whose they are."""
    records = evaluation.records
    metrics = {"heldout/step": float(evaluation.version.step)}
    metrics |= {"heldout/left_out": float(len(evaluation.left_out))}
    metrics |= {"heldout/total": fmean(record.total for record in records)}
    for key in records[0].scores:
        metrics[f"heldout/{key}"] = fmean(record.scores[key] for record in records)
    return metrics | {
        f"heldout/{n}": v for n, v in (("diversity", evaluation.diversity), *evaluation.looks.items())
    }
