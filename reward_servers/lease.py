"""How long a server stays without anybody who holds it or asks it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Lease:
    """Each replica has one. Clients that hold a server tell all replicas, so any of them may end it."""

    def __init__(self, idle_timeout_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """None: for ever."""
        self._clock = clock
        self._timeout_s = math.inf if idle_timeout_s is None else idle_timeout_s
        self._renewed = clock()

    @property
    def left_s(self) -> float:
        """Seconds until it runs out, negative afterwards; infinite where it never does."""
        return self._timeout_s - (self._clock() - self._renewed)

    def renew(self) -> None:
        self._renewed = self._clock()

    def lengthen(self, idle_timeout_s: float | None) -> None:
        """From now on, whoever wants a server longest decides."""
        self._timeout_s = max(self._timeout_s, math.inf if idle_timeout_s is None else idle_timeout_s)
        self.renew()
