"""Who may deploy reward servers: its process lives as long as the cluster, so it loads nothing."""

from __future__ import annotations

import time


class DeployLock:
    """Held by one process at a time; a detached Ray actor shared by the cluster."""

    def __init__(self) -> None:
        self._holder, self._until = "", 0.0

    def acquire(self, holder: str, lease_s: float) -> bool:
        """Whether `holder` has the lock now."""
        if self._holder not in ("", holder) and time.monotonic() < self._until:
            return False
        self._holder, self._until = holder, time.monotonic() + lease_s
        return True

    def release(self, holder: str) -> None:
        if self._holder == holder:
            self._holder = ""
