"""The learner inside this process: one rank, no Ray. The oracle of the distributed run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from astrolabe_ray.roles import BlobStore
from astrolabe_ray.types import ControllerState, PublishedPolicy, StepResult, TrainBatch, TrainPart
from learner.learner_worker import LearnerWorker
from learner.spec import LearnerSpec

T = TypeVar("T")


class LocalLearner:
    """Fulfils `roles.Learner`. All work happens on one thread of its own, so the event loop stays free."""

    def __init__(self, spec: LearnerSpec, blobs: BlobStore) -> None:
        self.worker = LearnerWorker(spec, rank=0, world_size=1, blobs=blobs)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="learner")

    async def start(self) -> None:
        await self._run(self.worker.setup)

    async def accumulate(self, part: TrainPart) -> None:
        """Raises ValueError for a part that was split for several ranks."""
        (micro_batches,) = part.ranks
        await self._run(self.worker.accumulate, part.group_id, micro_batches, step=part.step, seed=part.seed)

    async def train(self, batch: TrainBatch) -> StepResult:
        """Raises ValueError for a batch that was split for several ranks."""
        (micro_batches,) = batch.ranks
        return await self._run(
            self.worker.train,
            micro_batches,
            step=batch.step,
            seed=batch.seed,
            num_samples=batch.num_samples,
            streamed=batch.streamed,
        )

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        return PublishedPolicy(*await self._run(self.worker.pack, adapter))

    async def probe(self, seed: int) -> list[float]:
        return await self._run(self.worker.probe, seed)

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        await self._run(self.worker.save, directory, controller_state)

    async def load(self, directory: Path) -> ControllerState:
        return await self._run(self.worker.load, directory, self.worker.version.incarnation + 1)

    async def stop(self) -> None:
        self._thread.shutdown()

    async def _run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))
