"""The blob store of a run in one process: blobs are the arrays themselves. Imports no Ray."""

from __future__ import annotations

from astrolabe_ray.types import Blob


class LocalBlobStore:
    """Fulfils `roles.BlobStore`."""

    def get(self, blob: Blob) -> object:
        return blob
