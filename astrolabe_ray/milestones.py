"""Checkpoints, evaluations and health of a run: when, of which policy, and which checkpoints stay.

An evaluation in the middle of a run is of the policy that was the newest when it began, and goes on beside
training: rollout actors work on it while no training rollout waits. At most one is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from astrolabe_ray.background import Background
from astrolabe_ray.checkpoint_folders import best_step, checkpoints, delete, surplus
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.evaluator import Evaluator
from astrolabe_ray.health.watch import HealthWatch
from astrolabe_ray.report.statistics import comparable_means
from astrolabe_ray.roles import Learner, RunObserver
from astrolabe_ray.timeline import Timeline
from astrolabe_ray.types import ControllerState, Evaluation, PublishedPolicy
from astrolabe_ray.waiting import unless_stopped

log = logging.getLogger(__name__)


class Milestones:
    """`notes`: what every checkpoint says besides counters. `evaluations`: all that were finished, those of
    the part before a resume included. `on_progress` is called for everything that moved."""

    def __init__(
        self,
        config: RunConfig,
        *,
        learner: Learner,
        evaluator: Evaluator,
        observer: RunObserver,
        timeline: Timeline,
        background: Background,
        checkpoints: Path,
        stop: asyncio.Event,
        on_progress: Callable[[], None],
        earlier: Sequence[Evaluation] = (),
        notes: ControllerState | None = None,
    ) -> None:
        self.config, self.learner, self.evaluator, self.observer = config, learner, evaluator, observer
        self.evaluations = list(earlier)
        self._timeline, self._background, self._stop = timeline, background, stop
        self._on_progress, self._notes = on_progress, notes or {}
        self._checkpoints = checkpoints
        self.saved_step: int | None = None  # of the newest checkpoint of this run, or of where it began
        self.health = HealthWatch(config, observer)
        self._running: asyncio.Task[None] | None = None
        self._running_step: int | None = None  # of the policy that is evaluated now

    def wants_evaluation(self, step: int) -> bool:
        every = self.config.evaluation.every_steps
        return bool(every) and step % every == 0 and 0 < step < self.config.num_steps

    def wants_save(self, step: int) -> bool:
        """A policy that is evaluated is also saved, or the best one could not be kept."""
        settings = self.config.checkpoint
        return step % settings.every_steps == 0 or (settings.keep_best and self.wants_evaluation(step))

    async def save(self, step: int, state: ControllerState) -> None:
        """Write a checkpoint, then delete what need not stay."""
        start = self._timeline.now()
        await self.learner.save(self._checkpoints / f"checkpoint-{step}", state | self._notes)
        self.saved_step = step
        await asyncio.to_thread(self._prune)
        self._timeline.span("save", "learner", start, step=step)
        self._on_progress()

    async def evaluate(self, phase: str, policy: PublishedPolicy) -> None:
        """Evaluate, and return when it is done or the run was asked to stop."""
        await self._evaluate(phase, policy, is_beside_training=False)

    async def begin_evaluation(self, policy: PublishedPolicy) -> None:
        """Evaluate beside training. Returns at once, unless the evaluation before is not done yet."""
        await self.finish_evaluation()
        self._running_step = policy.manifest.version.step
        phase = f"step-{self._running_step}"
        self._running = self._background.spawn(self._evaluate(phase, policy, is_beside_training=True))

    async def finish_evaluation(self) -> None:
        """Wait for the evaluation beside training, if there is one. Raises what it failed with."""
        if self._running is not None:
            await self._running
        self._running = self._running_step = None

    def newest_checkpoint(self) -> Path | None:
        """Of this run. They are renamed into place when they are complete."""
        there = checkpoints(self._checkpoints)
        return there[-1] if there else None

    def forget_after(self, step: int) -> None:
        """The learner begins again at `step`: later evaluations are of policies that are gone."""
        self.evaluations = [e for e in self.evaluations if e.version.step <= step]
        self._running = self._running_step = None

    def missed(self, step: int) -> list[int]:
        """Steps before `step` whose evaluation was under way when the run that is resumed ended."""
        done = {evaluation.version.step for evaluation in self.evaluations}
        return [s for s in range(step) if self.wants_evaluation(s) and s not in done]

    @property
    def start(self) -> Evaluation | None:
        """What the others are compared with: of the policy that training began with, or of the checkpoint's
        where nothing is known of the run before it."""
        return next((evaluation for evaluation in self.evaluations if evaluation.phase == "before"), None)

    def is_evaluated(self, step: int) -> bool:
        return any(evaluation.version.step == step for evaluation in self.evaluations)

    async def _evaluate(self, phase: str, policy: PublishedPolicy, *, is_beside_training: bool) -> None:
        start = self._timeline.now()
        work = self.evaluator.evaluate(
            phase, policy, on_progress=self._on_progress, is_beside_training=is_beside_training
        )
        evaluation = await unless_stopped(work, self._stop)
        if evaluation is None:
            return
        first = self.start
        self.evaluations.append(evaluation)
        self._timeline.span("eval", "rollout actors", start, phase=phase)
        self.observer.evaluated(evaluation)
        if first is not None:
            self.health.after_evaluation(first, evaluation)
        self._on_progress()

    def _prune(self) -> None:
        """Keep the newest, the best one, and the one whose evaluation is under way."""
        settings, there = self.config.checkpoint, checkpoints(self._checkpoints)
        keep: set[int | None] = set()
        if settings.keep_best:
            totals = {
                e.version.step: {(r.prompt, r.seed): r.total for r in e.records} for e in self.evaluations
            }
            keep = {best_step(there, comparable_means(totals)), self._running_step}
        for path in surplus(there, settings.keep_last, {step for step in keep if step is not None}):
            try:
                delete(path)
            except OSError as error:
                log.warning("checkpoint %s stays: %s", path, error)
