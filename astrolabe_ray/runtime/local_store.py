"""The blob store of a run in one process: blobs are the arrays themselves. Imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence

from astrolabe_ray.errors import PayloadsLost
from astrolabe_ray.types import Blob


class LocalBlobStore:
    """Fulfils `roles.BlobStore`."""

    def get(self, blob: Blob) -> object:
        return blob

    def get_all(self, blobs: Sequence[Blob]) -> list[object | PayloadsLost]:
        return list(blobs)
