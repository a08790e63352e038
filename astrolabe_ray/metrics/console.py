"""What a person watches: a live line for the phase, a table row for each step.

On a terminal the line is redrawn in place; in a job log each tenth of a phase is a line of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astrolabe_ray.types import Alarm, Evaluation

COLUMNS = (
    ("step", "step", "{:.0f}"),
    ("reward", "reward/total", "{:.4f}"),
    ("age", "policy_age/mean", "{:.1f}"),
    ("loss", "loss", "{:.4f}"),
    ("grad", "grad_norm", "{:.3f}"),
    ("videos/s", "rollouts_per_s", "{:.2f}"),
    ("rollout s", "seconds/rollout", "{:.1f}"),
    ("score s", "seconds/score", "{:.1f}"),
    ("wait s", "seconds/wait", "{:.1f}"),
    ("train s", "seconds/train", "{:.1f}"),
)
WIDTH = 10
ROWS_PER_HEADER = 20


class RunConsole:
    """Use as a context manager around the run."""

    def __init__(self, console: Console | None = None) -> None:
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
        self._bar = self._progress.add_task("", total=None, visible=False)
        self._phase, self._total, self._done, self._said = "", 0, 0, 0
        self._rows = 0
        self._start = time.monotonic()

    def __enter__(self) -> RunConsole:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def phase(self, name: str, total: int) -> None:
        self._phase, self._total, self._done, self._said = name, total, 0, 0
        self._progress.reset(self._bar, description=name, total=total or None, visible=True)
        if self._progress.disable:
            self.say(name)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.advance(self._bar, count)
        tenth = 10 * self._done // self._total if self._total else 0
        if self._progress.disable and tenth > self._said and self._phase != "train":
            self._said = tenth
            self.say(f"{self._phase}: {self._done} of {self._total}")

    def step(self, metrics: Mapping[str, float]) -> None:
        """One row; NaN-free by construction, a column that a run lacks stays empty."""
        rewards = [name for name in metrics if name.startswith("reward/") and name != "reward/total"]
        columns = [*COLUMNS[:2], *((name[7:], name, "{:.4f}") for name in rewards), *COLUMNS[2:]]
        if self._rows % ROWS_PER_HEADER == 0:
            self._console.print(
                "".join(f"{title[:WIDTH]:>{WIDTH + 1}}" for title, _, _ in columns),
                style="bold",
                soft_wrap=True,
            )
        self._rows += 1
        cells = [form.format(metrics[name]) if name in metrics else "" for _, name, form in columns]
        self._console.print(
            "".join(f"{cell:>{WIDTH + 1}}" for cell in cells), highlight=False, soft_wrap=True
        )

    def evaluated(self, evaluation: Evaluation, compared: Mapping[str, float] | None = None) -> None:
        """`compared`: its total against that of the first evaluation."""
        mean = sum(record.total for record in evaluation.records) / len(evaluation.records)
        self.say(
            f"held-out reward {evaluation.phase}: {mean:.4f} over {len(evaluation.records)} videos, "
            f"diversity {evaluation.diversity:.4f}"
        )
        if compared is not None:
            difference, width = compared["paired_diff_mean"], compared["paired_diff_ci95"]
            better = f"{100 * compared['win_rate']:.0f} % of the videos better"
            self.say(f"against the first: {difference:+.4f} +- {width:.4f} (95 %), {better}")

    def alarmed(self, alarm: Alarm) -> None:
        ends = " The run ends." if alarm.stops else ""
        found = f"{alarm.value:.4g}, limit {alarm.limit:g}"
        self.say(f"ALARM {alarm.guard} at step {alarm.step}: {found}: {alarm.text}.{ends}")

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        self._console.print(
            f"[{time.monotonic() - self._start:7.1f} s] {text}", markup=False, highlight=False, soft_wrap=True
        )
