"""A Ray actor that looks at videos for the controller, which never holds pixels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray

from astrolabe_ray.report.gallery import GalleryWorker
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import Blob

TIMEOUT_S = 300.0


class RayGallery:
    """Fulfils `roles.Gallery`. Its actor ends with the driver."""

    def __init__(self) -> None:
        self._worker: Any = ray.remote(num_cpus=0)(GalleryWorker).remote(RayBlobStore())

    async def encode(self, video: Blob, *, fps: int, comment: str) -> bytes:
        return await asyncio.wait_for(self._worker.encode.remote([video], fps, comment), TIMEOUT_S)

    async def diversity(self, videos: Sequence[Blob]) -> float:
        return await asyncio.wait_for(self._worker.diversity.remote(list(videos)), TIMEOUT_S)
