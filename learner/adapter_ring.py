"""The behaviour policies of the last few versions, as flat float32 vectors.

NFT contrasts the trained policy with the one that made a sample. Kept in memory: 1.4 GB a version for
rank 256 on the 1.3B model, and never reloaded from disk.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.types import PolicyVersion


class AdapterRing:
    """Holds the newest `size` versions; `push` forgets the oldest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._flat: dict[PolicyVersion, Tensor] = {}

    def push(self, version: PolicyVersion, flat: Tensor) -> None:
        """Add `flat` as the newest version. Raises ValueError if a newer one is there."""
        if self._flat and version <= self.newest_version:
            raise ValueError(f"version {version} is not newer than {self.newest_version}")
        self._flat[version] = flat
        while len(self._flat) > self.size:
            del self._flat[next(iter(self._flat))]

    def get(self, version: PolicyVersion) -> Tensor:
        """The weights of `version`. Raises WeightMismatch when they are not here (any more)."""
        if version not in self._flat:
            held = ", ".join(map(str, self._flat))
            raise WeightMismatch(
                f"a sample was made by policy {version}, but the learner holds {held}. Samples older than "
                "rollout.max_policy_age must be dropped before training; raise it to train on them."
            )
        return self._flat[version]

    def replace(self, versions: Iterable[tuple[PolicyVersion, Tensor]]) -> None:
        """Forget everything and take `versions`, oldest first."""
        self._flat.clear()
        for version, flat in versions:
            self.push(version, flat)

    @property
    def newest_version(self) -> PolicyVersion:
        return next(reversed(self._flat))

    @property
    def newest(self) -> Tensor:
        return self._flat[self.newest_version]

    def items(self) -> list[tuple[PolicyVersion, Tensor]]:
        """All versions, oldest first."""
        return list(self._flat.items())
