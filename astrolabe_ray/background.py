"""Work beside each other on one event loop: the first failure is kept, and every change wakes who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Tasks that somebody watches: `failure` is what ended the first one that failed."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def wake(self) -> None:
        """Let everyone who waits look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def moved(self) -> None:
        """Returns at the next `wake`. Checking a condition and then awaiting this loses no wake-up, because
        nothing else runs between the two."""
        await self._moved.wait()

    async def cancel(self) -> None:
        """End all tasks, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self.failure is None:
            self.failure = task.exception()
        self.wake()
