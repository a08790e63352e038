"""Hands groups to the learner before all groups of their step are ready.

With `learner.accumulate=streaming` (and so with `rollout.max_policy_age=0`) the learner computes a group's
gradients while rollout actors make the others. Groups go in the order of their dispatch, so that the sum of
their gradients does not depend on who was quickest: a run is reproducible bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.roles import Learner
from astrolabe_ray.rollout_buffer import RolloutBuffer
from astrolabe_ray.step_batch import StepBatches
from astrolabe_ray.timeline import Timeline
from astrolabe_ray.types import RolloutGroup


class Accumulated(NamedTuple):
    """What the learner has of a step."""

    group_ids: frozenset[str]
    seconds: float  # that it took


class GroupStream:
    """Remembers what the learner has of the step under way, in one life of the learner."""

    def __init__(self, config: RunConfig, learner: Learner, batches: StepBatches, timeline: Timeline) -> None:
        self._is_on = config.learner.accumulate == "streaming"
        self._learner, self._batches, self._timeline = learner, batches, timeline
        self._forget()

    def next(self, buffer: RolloutBuffer) -> RolloutGroup | None:
        """The group to accumulate now, if there is one."""
        if not self._is_on:
            return None
        return next((g for g in buffer.next_in_order() if g.number not in self._seen), None)

    async def accumulate(self, group: RolloutGroup, step: int) -> None:
        """Raises PayloadsLost; then the group is not accumulated, and may come again."""
        part = self._batches.part(group, step)
        if part is not None:
            began = self._timeline.now()
            await self._learner.accumulate(part)
            self._timeline.span("train", "learner", began, group=group.number)
            self._seconds += self._timeline.now() - began
            self._group_ids.add(group.group_id)
        self._seen.add(group.number)

    def take(self) -> Accumulated:
        """All of the step that is trained now, in which the learner forgets it."""
        taken = Accumulated(frozenset(self._group_ids), self._seconds)
        self._forget()
        return taken

    def _forget(self) -> None:
        self._seen: set[int] = set()  # numbers, also of groups that are left out of the step
        self._group_ids: set[str] = set()
        self._seconds = 0.0
