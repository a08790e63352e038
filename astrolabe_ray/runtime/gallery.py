"""A Ray actor that looks at videos for the controller, which never holds pixels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from astrolabe_ray.report.gallery import GalleryWorker
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import Blob

TIMEOUT_S = 300.0
MAX_RETRIES = 3
"""Of one question, when the process that looks at videos dies; a new one knows as much as the old one."""


class RayGallery:
    """Fulfils `roles.Gallery`. Its actor ends with the driver. Raises PayloadsLost for lost videos."""

    def __init__(self) -> None:
        self._worker: Any = None

    async def start(self) -> None:
        options: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=MAX_RETRIES)
        self._worker = options(GalleryWorker).remote(RayBlobStore())

    async def encode(self, video: Blob, *, fps: int, comment: str) -> bytes:
        return await _answer(self._worker.encode.remote([video], fps, comment), "encoding a video")

    async def diversity(self, videos: Sequence[Blob]) -> float:
        return await _answer(self._worker.diversity.remote(list(videos)), "comparing videos")

    async def looks(self, videos: Sequence[Blob]) -> dict[str, float]:
        return await _answer(self._worker.looks.remote(list(videos)), "looking at videos")


async def _answer(reference: Any, doing: str) -> Any:
    try:
        return await asyncio.wait_for(reference, TIMEOUT_S)
    except (RayError, asyncio.TimeoutError) as error:
        raise as_failure(error, doing) from error
