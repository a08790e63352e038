"""Looks at videos where they are; what goes back to the controller is small. A plain class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astrolabe_ray.report.looks import looks
from astrolabe_ray.report.statistics import diversity
from astrolabe_ray.report.video import encode_mp4
from astrolabe_ray.roles import BlobStore
from astrolabe_ray.types import Blob


class GalleryWorker:
    """Reads videos from a blob store. `LocalGallery` and the one on Ray share it."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def encode(self, video: Sequence[Blob], fps: int, comment: str) -> bytes:
        """The only video of the list as an mp4 file (in a list, so that Ray passes the reference on)."""
        return encode_mp4(self._array(video[0]), fps=fps, comment=comment)

    def diversity(self, videos: Sequence[Blob]) -> float:
        return diversity([self._array(video) for video in videos])

    def looks(self, videos: Sequence[Blob]) -> dict[str, float]:
        return looks([self._array(video) for video in videos])

    def _array(self, video: Blob) -> np.ndarray:
        array = self._store.get(video)
        assert isinstance(array, np.ndarray)
        return array


class LocalGallery:
    """Fulfils `roles.Gallery` in this process."""

    def __init__(self, store: BlobStore) -> None:
        self._worker = GalleryWorker(store)

    async def start(self) -> None: ...

    async def encode(self, video: Blob, *, fps: int, comment: str) -> bytes:
        return self._worker.encode([video], fps, comment)

    async def diversity(self, videos: Sequence[Blob]) -> float:
        return self._worker.diversity(videos)

    async def looks(self, videos: Sequence[Blob]) -> dict[str, float]:
        return self._worker.looks(videos)
