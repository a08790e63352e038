"""A learner that remembers what became of its calls: after a failure elsewhere, it can still be saved."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Literal, TypeVar

from astrolabe_ray.errors import PayloadsLost
from astrolabe_ray.roles import Learner
from astrolabe_ray.types import ControllerState, PublishedPolicy, StepResult, TrainBatch, TrainPart

T = TypeVar("T")


class TrackedLearner:
    """Fulfils `roles.Learner` by another one. `is_sound`: no call has failed and none is under way."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._num_open = 0
        self._has_failed = False

    @property
    def is_busy(self) -> bool:
        return self._num_open > 0

    @property
    def is_sound(self) -> bool:
        return not self._has_failed and not self.is_busy

    async def start(self) -> None:
        """Begins a new life after a failure."""
        self._has_failed = False
        await self._noted(self._learner.start())

    async def accumulate(self, part: TrainPart) -> None:
        await self._noted(self._learner.accumulate(part))

    async def train(self, batch: TrainBatch) -> StepResult:
        return await self._noted(self._learner.train(batch))

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        return await self._noted(self._learner.publish(adapter))

    async def probe(self, seed: int) -> list[float]:
        return await self._noted(self._learner.probe(seed))

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        await self._noted(self._learner.save(directory, controller_state))

    async def load(self, directory: Path) -> ControllerState:
        return await self._noted(self._learner.load(directory))

    async def stop(self) -> None:
        await self._learner.stop()

    async def _noted(self, call: Awaitable[T]) -> T:
        """Lost payloads are no failure of the learner's: nothing has changed then. A call that was given up
        is one, since nobody knows what it left."""
        self._num_open += 1
        is_sound = False
        try:
            result = await call
            is_sound = True
        except PayloadsLost:
            is_sound = True
            raise
        finally:
            self._num_open -= 1
            self._has_failed |= not is_sound
        return result
