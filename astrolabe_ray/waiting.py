"""Waits that end: for work unless a stop comes first, and for progress that fails to appear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from astrolabe_ray.errors import RunStalled

T = TypeVar("T")


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T | None:
    """What `work` returns; None, with `work` cancelled, when `stop` is set first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)


class Watchdog:
    """Ends a run in which nothing moved for `limit_s` while work remained.

    Progress is whatever `moved` is called for: a finished request, a score, a step, a published policy, an
    evaluated prompt. `limit_s` must exceed every single wait, which has a timeout and an error of its own.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._last = limit_s, time.monotonic()

    def moved(self) -> None:
        self._last = time.monotonic()

    async def watch(self, describe: Callable[[], str]) -> None:
        """Raises RunStalled, with what `describe` says of the stage and the oldest item."""
        while True:
            await asyncio.sleep(min(self._limit_s / 4, 5.0))
            idle = time.monotonic() - self._last
            if idle > self._limit_s:
                raise RunStalled(
                    f"nothing moved for {idle:.0f} s {describe()}. Look at the Ray dashboard for dead or "
                    "pending actors; raise cluster.stall_timeout_s if one video takes this long."
                )
