"""Reads payloads out of Ray's object store."""

from __future__ import annotations

import time
from collections.abc import Sequence

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from astrolabe_ray.errors import InfraFailure, PayloadsLost
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.types import Blob

GET_TIMEOUT_S = 120.0
"""A payload of the largest size (97 MB) takes a second between nodes; more means that it is lost."""
LAST_LOOK_S = 0.1
"""Past the time limit of many; what has arrived by then takes no time."""


class RayBlobStore:
    """Fulfils `roles.BlobStore` for references. Arrays on this node are read without copying."""

    def __init__(self, timeout_s: float = GET_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def get(self, blob: Blob) -> object:
        """The array (read-only). Raises PayloadsLost when it is gone or does not arrive in time."""
        return self._get(blob, self._timeout_s)

    def get_all(self, blobs: Sequence[Blob]) -> list[object | PayloadsLost]:
        """Fetches all at the same time, so that the limit of one is enough for all."""
        deadline = time.monotonic() + self._timeout_s
        if wanted := list(dict.fromkeys(blobs)):
            ray.wait(wanted, num_returns=len(wanted), timeout=self._timeout_s)
        return [self._got(blob, max(LAST_LOOK_S, deadline - time.monotonic())) for blob in blobs]

    def _got(self, blob: Blob, timeout_s: float) -> object | PayloadsLost:
        try:
            return self._get(blob, timeout_s)
        except PayloadsLost as lost:
            return lost

    def _get(self, blob: Blob, timeout_s: float) -> object:
        assert isinstance(blob, ObjectRef), f"a Ray reference is expected, got {type(blob).__name__}"
        try:
            return ray.get(blob, timeout=timeout_s)
        except RayError as error:
            failure = as_failure(error, f"reading a payload within {self._timeout_s:g} s")
            raise PayloadsLost(str(failure)) if type(failure) is InfraFailure else failure from error
