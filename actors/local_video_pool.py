"""One video worker inside this process, without Ray: views are arrays. The oracle of the Ray pool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from actors.video_worker import VideoWorker
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoTask, VideoWatcher


class LocalVideoPool:
    """Fulfils `video_tasks.VideoPool`. Work is done in the caller's thread: nothing runs beside it.

    Between two chunks others have their turn, so that a command that is interrupted ends there.
    """

    def __init__(self, spec: VideoModelSpec) -> None:
        self._worker = VideoWorker(spec, "local")

    @property
    def capacity(self) -> int:
        return 1

    async def start(self) -> None:
        self._worker.setup()

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        watcher.begin(tasks)
        pieces = self._worker.make(tasks)
        while not isinstance(piece := next(pieces), FinishedVideos):
            watcher.take(tasks, piece)
            await asyncio.sleep(0)
        num_views = len(self._worker.spec.views)
        views = tuple(tuple(next(pieces) for _ in range(num_views)) for _ in tasks)
        return replace(piece, views=views)

    async def stop(self) -> None: ...
