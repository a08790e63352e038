"""Workers that make videos as Ray actors on a cluster, replaced when they die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.fleet import Fleet
from actors.scaling import ReplacementBudget, ScalingPolicy
from actors.video_worker import VideoWorker
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.runtime.hiring import HiredActor, Hiring
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoTask, VideoWatcher

MAX_ATTEMPTS = 5
"""Of one batch, before the command stops."""
MAX_REPLACEMENTS_PER_HOUR = 30
PLACEMENT_TIMEOUT_S = 120.0


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
        chunk_timeout_s: float,
        placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
    ) -> None:
        """`chunk_timeout_s`: the longest that loading the models or making a chunk may take."""
        self._spec = spec
        self._hiring = Hiring(
            VideoWorker,
            spec,
            "video-worker",
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            placement_timeout_s=placement_timeout_s,
            answer_timeout_s=chunk_timeout_s,
            timeout_option="--chunk-timeout-s",
        )
        self._fleet: Fleet[HiredActor] = Fleet(
            self._hiring.hire,
            self._hiring.dismiss,
            self._hiring.settle,
            scaling=ScalingPolicy(num_workers, num_workers),
            budget=ReplacementBudget(MAX_REPLACEMENTS_PER_HOUR, "video workers"),
        )

    @property
    def capacity(self) -> int:
        return len(self._fleet.members)

    async def start(self) -> None:
        """Raises ConfigError when the cluster has no room or the model's files do not fit."""
        await self._fleet.start()

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        async def work(member: HiredActor) -> FinishedVideos:
            watcher.begin(tasks)
            return await self._made_by(member, tasks, watcher)

        return await self._fleet.on_member(work, max_attempts=MAX_ATTEMPTS, broken=(InfraFailure,))

    async def stop(self) -> None:
        await self._fleet.stop()

    async def _made_by(
        self, member: HiredActor, tasks: Sequence[VideoTask], watcher: VideoWatcher
    ) -> FinishedVideos:
        pieces = member.actor.make.options(num_returns="streaming").remote(tasks)
        doing = f"{member} making video {tasks[0].prompt_index}"
        while not isinstance(
            piece := await self._hiring.answer(await self._next(pieces, doing), doing), FinishedVideos
        ):
            watcher.take(tasks, piece)
        num_views = len(self._spec.views)
        views = [
            tuple([await self._next(pieces, doing) for _ in range(num_views)])  # left unread
            for _ in tasks
        ]
        return replace(piece, views=tuple(views))

    async def _next(self, pieces: Any, doing: str) -> Any:
        """Reference of a generator's next value."""
        return await self._hiring.answer(pieces.__anext__(), doing)
