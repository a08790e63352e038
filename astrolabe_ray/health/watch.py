"""Turns readings into alarms: once when a condition has lasted, and again only after it was gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.health.evaluation_guards import evaluation_readings
from astrolabe_ray.health.readings import Reading
from astrolabe_ray.health.step_guards import ADAPTER_NORM, step_readings
from astrolabe_ray.report.statistics import is_paired
from astrolabe_ray.roles import RunObserver
from astrolabe_ray.types import Alarm, ControllerState, Evaluation

MEDIAN_STEPS = 20
AT_ONCE = ("gradient_growth", "norm_growth")
"""Guards of a step that one bad reading is enough for."""


class HealthWatch:
    """Looks at every step and evaluation. `stopped_by`: the guard that wants the run to end, if one does."""

    def __init__(self, config: RunConfig, observer: RunObserver) -> None:
        self._config, self._limits, self._observer = config, config.health, observer
        self._weights = {reward.key: reward.weight for reward in config.rewards}
        self._first_norms: dict[str, float] = {}
        self._gradients: list[float] = []  # of the last steps
        self._streaks: Counter[str] = Counter()  # guard of steps -> bad readings in a row
        self._sounding: set[str] = set()  # guards of evaluations whose last reading was bad
        self.alarms: list[Alarm] = []
        self.stopped_by: str | None = None

    def after_step(self, row: Mapping[str, float]) -> dict[str, float]:
        """Sound the alarms of a step; returns how many of its guards are in alarm."""
        if not self._first_norms:
            self._first_norms = {n: v for n, v in row.items() if n.startswith(ADAPTER_NORM) and v > 0}
        readings = step_readings(
            row,
            self._limits,
            num_groups=self._config.rollout.num_groups,
            first_norms=self._first_norms,
            recent_gradients=self._gradients,
        )
        if row.get("grad_norm", 0.0) > 0:
            self._gradients = [*self._gradients, row["grad_norm"]][-MEDIAN_STEPS:]
        return {
            "health/alarms": float(sum(self._has_lasted(reading, int(row["step"])) for reading in readings))
        }

    def after_evaluation(self, first: Evaluation, later: Evaluation) -> None:
        """Sound the alarms of an evaluation against the first one."""
        if not is_paired(first, later):
            return
        for reading in evaluation_readings(first, later, self._limits, weights=self._weights):
            if reading.is_bad and reading.guard not in self._sounding:
                self._sound(reading, later.version.step)
            (self._sounding.add if reading.is_bad else self._sounding.discard)(reading.guard)

    def state(self) -> ControllerState:
        """What a checkpoint keeps. Evaluations sound again after a resume."""
        kept = {
            "first_norms": self._first_norms,
            "gradients": self._gradients,
            "streaks": dict(self._streaks),
        }
        return {"health": kept}

    def restore(self, state: ControllerState) -> None:
        """Inverse of `state`; checkpoints of earlier versions have none, and watching begins with them."""
        kept = state.get("health", {"first_norms": {}, "gradients": [], "streaks": {}})
        self._first_norms, self._gradients = dict(kept["first_norms"]), list(kept["gradients"])
        self._streaks = Counter(kept["streaks"])

    def _has_lasted(self, reading: Reading, step: int) -> bool:
        """Whether a reading of a step is the last of enough bad ones; sounds when it has just become that."""
        patience = 1 if reading.guard in AT_ONCE else self._limits.patience_steps
        self._streaks[reading.guard] = streak = self._streaks[reading.guard] + 1 if reading.is_bad else 0
        if streak == patience:
            self._sound(reading, step)
        return streak >= patience

    def _sound(self, reading: Reading, step: int) -> None:
        stops = reading.guard in self._limits.stop_on
        text = f"{reading.meaning}; {reading.advice}"
        alarm = Alarm(reading.guard, step, reading.value, reading.limit, text, stops)
        self.alarms.append(alarm)
        self._observer.alarmed(alarm)
        if stops and self.stopped_by is None:
            self.stopped_by = reading.guard
