"""Reads payloads out of Ray's object store."""

from __future__ import annotations

import ray
from ray import ObjectRef
from ray.exceptions import RayError

from astrolabe_ray.errors import InfraFailure, PayloadsLost
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.types import Blob

GET_TIMEOUT_S = 120.0
"""A payload of the largest size (97 MB) takes a second between nodes; more means that it is lost."""


class RayBlobStore:
    """Fulfils `roles.BlobStore` for references. Arrays on this node are read without copying."""

    def __init__(self, timeout_s: float = GET_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def get(self, blob: Blob) -> object:
        """The array (read-only). Raises PayloadsLost when it is gone or does not arrive in time."""
        assert isinstance(blob, ObjectRef), f"a Ray reference is expected, got {type(blob).__name__}"
        try:
            return ray.get(blob, timeout=self._timeout_s)
        except RayError as error:
            failure = as_failure(error, f"reading a payload within {self._timeout_s:g} s")
            raise PayloadsLost(str(failure)) if type(failure) is InfraFailure else failure from error
