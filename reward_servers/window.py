"""How many requests a client has at a server at once: fewer when the server refuses, more when it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

SHRINKS_EVERY_S = 0.5
"""Refusals that come together count as one."""


class Window:
    """Produces: places. Waits for: a free one. Bounded by: `limit`, half of it after a refusal."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._size, self._in_flight, self._shrunk_at = float(limit), 0, float("-inf")
        self._changed = asyncio.Condition()

    @property
    def size(self) -> int:
        return int(self._size)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < self.size)
            self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    def refused(self) -> None:
        if self._clock() - self._shrunk_at >= SHRINKS_EVERY_S:
            self._size, self._shrunk_at = max(1.0, self._size / 2), self._clock()

    def answered(self) -> None:
        self._size = min(float(self._limit), self._size + 1 / self._size)
