"""Workers that make videos as Ray actors on a cluster, replaced when they die."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.fleet import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Fleet
from actors.scaling import ReplacementBudget, ScalingPolicy
from actors.video_worker import VideoWorker
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.placement import bundle, release, reserve
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoTask, VideoWatcher

MAX_ATTEMPTS = 5
"""Of one batch, before the command stops."""
MAX_REPLACEMENTS_PER_HOUR = 30
PLACEMENT_TIMEOUT_S, PIECE_TIMEOUT_S = 120.0, 900.0


@dataclass(eq=False)
class _Member:
    """One Ray actor and the room reserved for it."""

    name: str
    actor: Any
    placement: PlacementGroup

    def __str__(self) -> str:
        return self.name


class RayVideoPool:
    """Fulfils `video_tasks.VideoPool` with one Ray actor per worker.

    This process reads what goes into files (mp4 parts, contact sheets) and no pixels: views are
    references. A worker on which anything failed is killed and replaced; its batch is begun anew
    elsewhere, with the same seeds.
    """

    def __init__(
        self,
        spec: VideoModelSpec,
        *,
        num_workers: int,
        num_cpus: float,
        num_gpus: float,
        placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
        piece_timeout_s: float = PIECE_TIMEOUT_S,
    ) -> None:
        """`piece_timeout_s`: the longest that loading the models or making a chunk may take."""
        self._spec = spec
        self._room = bundle(num_cpus, num_gpus)
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._placement_timeout_s, self._piece_timeout_s = placement_timeout_s, piece_timeout_s
        self._namespace = f"videos-{uuid.uuid4().hex[:8]}"
        self._fleet: Fleet[_Member] = Fleet(
            self._hire,
            self._dismiss,
            scaling=ScalingPolicy(num_workers, num_workers),
            budget=ReplacementBudget(MAX_REPLACEMENTS_PER_HOUR),
        )

    @property
    def capacity(self) -> int:
        return len(self._fleet.members)

    async def start(self) -> None:
        """Raises ConfigError when the cluster has no room or the model's files do not fit."""
        await self._fleet.start()

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        backoff_s = FIRST_BACKOFF_S
        for attempt in range(1, MAX_ATTEMPTS + 1):
            async with self._fleet.borrow() as member:
                watcher.begin(tasks)
                try:
                    return await self._made_by(member, tasks, watcher)
                except InfraFailure as failure:
                    self._fleet.discard(member, failure)
                    if attempt == MAX_ATTEMPTS:
                        raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
        raise AssertionError("MAX_ATTEMPTS is at least 1")

    async def stop(self) -> None:
        await self._fleet.stop()

    async def _made_by(
        self, member: _Member, tasks: Sequence[VideoTask], watcher: VideoWatcher
    ) -> FinishedVideos:
        pieces = member.actor.make.options(num_returns="streaming").remote(tasks)
        doing = f"{member} making video {tasks[0].prompt_index}"
        while not isinstance(
            piece := await self._result(await self._next(pieces, doing), doing), FinishedVideos
        ):
            watcher.take(tasks, piece)
        num_views = len(self._spec.views)
        views = [
            tuple([await self._next(pieces, doing) for _ in range(num_views)])  # left unread
            for _ in tasks
        ]
        return replace(piece, views=tuple(views))

    async def _next(self, pieces: Any, doing: str) -> Any:
        """Reference of a generator's next value. Raises what `as_failure` makes of an error."""
        try:
            return await asyncio.wait_for(pieces.__anext__(), self._piece_timeout_s)
        except (RayError, asyncio.TimeoutError) as error:
            raise as_failure(error, doing) from error

    async def _hire(self, number: int) -> _Member:
        name = f"video-worker-{number}"
        placement = await reserve([self._room], name=name, timeout_s=self._placement_timeout_s)
        remote = ray.remote(VideoWorker).options(
            name=name,
            namespace=self._namespace,
            max_restarts=0,  # a restarted process would have no models; the fleet replaces it
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, 0),
            **self._resources,
        )
        member = _Member(name, remote.remote(self._spec, name), placement)
        is_ready = False
        try:
            await self._result(member.actor.setup.remote(), f"{name} loading its models")
            is_ready = True
        finally:
            if not is_ready:
                self._dismiss(member)
        return member

    def _dismiss(self, member: _Member) -> None:
        ray.kill(member.actor)
        release(member.placement)

    async def _result(self, ref: Any, doing: str) -> Any:
        """The value of a reference. Raises what `as_failure` makes of an error or a timeout."""
        try:
            return await asyncio.wait_for(_awaited(ref), self._piece_timeout_s)
        except (RayError, asyncio.TimeoutError) as error:
            raise as_failure(error, doing) from error


async def _awaited(ref: Any) -> Any:
    return await ref
