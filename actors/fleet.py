"""Who is idle, who is lent, who is to be replaced: bookkeeping for any kind of worker, without Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from actors.scaling import ReplacementBudget, ScalingPolicy
from astrolabe_ray.errors import AstrolabeError, ConfigError

M = TypeVar("M")
T = TypeVar("T")
log = logging.getLogger(__name__)

SCALING_PERIOD_S = 1.0
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0


class Fleet(Generic[M]):
    """Between a minimum and a maximum of members, each lent to one borrower at a time.

    `hire(number)` makes a member (numbers are never used twice) and raises AstrolabeError when it
    can't; `dismiss(member)` ends one; `settle(member)` returns when it has finished what a borrower that was
    cancelled had asked of it, and raises AstrolabeError when it doesn't. Whoever finds a member broken calls
    `discard`. `clock` gives seconds.
    """

    def __init__(
        self,
        hire: Callable[[int], Awaitable[M]],
        dismiss: Callable[[M], None],
        settle: Callable[[M], Awaitable[None]],
        *,
        scaling: ScalingPolicy,
        budget: ReplacementBudget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hire, self._dismiss, self._settle = hire, dismiss, settle
        self._scaling, self._budget, self._clock = scaling, budget, clock
        self.members: list[M] = []
        self._idle: list[M] = []
        self._num_waiting = self._num_starting = self._num_hired = 0
        self._num_first = 0  # of those who wait, those that go before the patient
        self._deserted_at_s = 0.0  # when the last member went
        self._failure: BaseException | None = None
        self._moved = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Hire the minimum. Raises what the first failing hire raised; `stop` ends the others."""
        await asyncio.gather(*(self._task(self._add()) for _ in range(self._scaling.minimum)))
        if self._scaling.maximum > self._scaling.minimum:
            self._spawn(self._scale())

    @asynccontextmanager
    async def borrow(self, *, is_patient: bool = False) -> AsyncIterator[M]:
        """A member for the caller alone. Waits for: an idle one; the patient until none of the others waits.
        Unblocked by: returns and hires. Bounded by: the replacement budget, whose InfraFailure is raised
        here."""
        member = await self._take(is_patient)
        async with self._lent([member]):
            yield member

    @asynccontextmanager
    async def borrow_idle(self) -> AsyncIterator[list[M]]:
        """All members that are idle now, each once; none may be."""
        members, self._idle = self._idle, []
        async with self._lent(members):
            yield members

    async def on_member(
        self,
        work: Callable[[M], Awaitable[T]],
        *,
        max_attempts: int,
        broken: tuple[type[Exception], ...],
        is_patient: bool = False,
    ) -> T:
        """`work` on a free member. One on which it raises an error of `broken` is discarded, and the work
        done elsewhere. Raises the last such error after `max_attempts` tries.
        """
        backoff_s = FIRST_BACKOFF_S
        for attempt in range(1, max_attempts + 1):
            async with self.borrow(is_patient=is_patient) as member:
                try:
                    return await work(member)
                except broken as failure:
                    self.discard(member, failure)
                    if attempt == max_attempts:
                        raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
        raise AssertionError("max_attempts is at least 1")

    @property
    def num_idle(self) -> int:
        """Members that could be borrowed without waiting."""
        return len(self._idle)

    def discard(self, member: M, reason: object) -> None:
        """End a broken member and replace it in the background."""
        if member not in self.members:
            return
        log.warning("%s is replaced: %s", member, reason)
        self._remove(member)
        self._spawn(self._replace(reason))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for member in list(self.members):
            self._remove(member)

    async def _take(self, is_patient: bool = False) -> M:
        self._num_waiting += 1
        self._num_first += not is_patient
        try:
            while len(self._idle) <= (self._num_first if is_patient else 0):
                if self._failure is not None:
                    raise self._failure
                await self._moved.wait()
            return self._idle.pop()
        finally:
            self._num_waiting -= 1
            if not is_patient:
                self._num_first -= 1
                self._wake()  # it may have given up, and leave its member to a patient one

    @asynccontextmanager
    async def _lent(self, members: list[M]) -> AsyncIterator[None]:
        """`members` are idle again at the end; if the borrower was cancelled, once they have settled."""
        try:
            yield
        except asyncio.CancelledError:
            for member in members:
                if member in self.members:
                    self._spawn(self._return_settled(member))
            raise
        except BaseException:
            self._return(members)
            raise
        self._return(members)

    def _return(self, members: list[M]) -> None:
        self._idle += [member for member in members if member in self.members]
        self._wake()

    async def _return_settled(self, member: M) -> None:
        """A request that nobody waits for any more still runs; the next one would queue behind it."""
        try:
            await self._settle(member)
        except AstrolabeError as failure:
            self.discard(member, failure)
        self._return([member])

    async def _add(self) -> None:
        number, self._num_hired = self._num_hired, self._num_hired + 1
        self._num_starting += 1
        try:
            member = await self._hire(number)
        finally:
            self._num_starting -= 1
        self.members.append(member)
        self._idle.append(member)
        self._wake()

    def _remove(self, member: M) -> None:
        self.members.remove(member)
        self._deserted_at_s = self._clock()
        if member in self._idle:
            self._idle.remove(member)
        self._dismiss(member)

    async def _replace(self, reason: object) -> None:
        """Produces: one member. Waits for: room in the cluster. Bounded by: the replacement budget, and by
        its patience when nobody is left.

        Looking for room costs nothing while others are at work: a node may be gone for good.
        """
        backoff_s, is_charged = FIRST_BACKOFF_S, True
        while True:
            if is_charged:
                self._budget.spend(self._clock(), reason)
            try:
                return await self._add()
            except AstrolabeError as failure:
                log.warning("no replacement yet, next try in %.0f s: %s", backoff_s, failure)
                reason = failure
                is_charged = not (isinstance(failure, ConfigError) and self.members)
                if not self.members:
                    self._budget.require_patience(self._clock() - self._deserted_at_s, reason)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    async def _scale(self) -> None:
        """Produces: hires and dismissals of idle members. Waits for: the clock. Ends with `stop`."""
        while True:
            await asyncio.sleep(SCALING_PERIOD_S)
            idle = len(self._idle)
            step = self._scaling.change(
                SCALING_PERIOD_S,
                waiting=self._num_waiting,
                idle=idle,
                busy=len(self.members) - idle,
                starting=self._num_starting,
            )
            if step > 0:
                self._spawn(self._grow())
            elif step < 0:
                log.info("%s is let go: it idled", self._idle[0])
                self._remove(self._idle[0])

    async def _grow(self) -> None:
        try:
            await self._add()
        except AstrolabeError as failure:
            log.warning("stays at %d members: %s", len(self.members), failure)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._task(work).add_done_callback(self._ended)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, and end it in `stop` at the latest."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._wake()

    def _wake(self) -> None:
        """Let all who wait look again (no wake-up is lost: nothing runs between look and wait)."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
