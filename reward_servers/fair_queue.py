"""Who is served next: requests wait in a line for each client, and batches take from all lines in turn.

Produces: batches. Waits for: requests. Bounded by: `capacity`, in equal parts, one for each client and one
for whoever comes next. What is beyond its client's part is refused before it has moved pixels.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from astrolabe_ray.errors import ServerBusy
from reward_servers.batch_scoring import ScoreRequest
from reward_servers.scoring import Numbers


@dataclass(eq=False)
class Waiting:
    """A request, and where its answer goes. Whoever asked may have given up: then `answer` is done."""

    request: ScoreRequest
    answer: asyncio.Future[Numbers]
    frames: asyncio.Future[np.ndarray] | None = None  # None: nobody has asked for them yet

    def tell(self, result: Numbers | BaseException) -> None:
        if self.answer.done():
            return
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class FairQueue:
    """Requests of one replica that have no answer yet. Used from one event loop."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity  # requests without an answer, of all clients
        self._lines: dict[str, deque[Waiting]] = {}  # by client; the first in the dict has the next turn
        self._unanswered: Counter[str] = Counter()
        self._late: Counter[str] = Counter()  # by client: requests that were set aside
        self._arrived = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        """Requests that are not being scored."""
        return sum(map(len, self._lines.values())) + self._late.total()

    def limit(self, client: str) -> int:
        """Requests without an answer that `client` may have, as long as no other client comes or goes."""
        num_clients = len(self._unanswered.keys() | {client})
        return max(1, self._capacity // (num_clients + 1))

    def put(self, request: ScoreRequest) -> asyncio.Future[Numbers]:
        """Its answer, later. Raises ServerBusy beyond the client's part."""
        client, limit = request.client, self.limit(request.client)
        if self._unanswered[client] >= limit:
            raise ServerBusy(
                f"{self._unanswered[client]} requests of '{client}' wait at this replica already, its part "
                f"of {self._capacity} is {limit}; ask again later"
            )
        waiting = Waiting(request, asyncio.get_running_loop().create_future())
        self._unanswered[client] += 1
        waiting.answer.add_done_callback(lambda _: self._answered(waiting))
        self._lines.setdefault(client, deque()).append(waiting)
        self._arrived.set()
        return waiting.answer

    async def batch(self, max_videos: int, wait_s: float) -> list[Waiting]:
        """The next requests: at least one, and no more videos than `max_videos` unless the first has more.

        Waits up to `wait_s` for the batch to fill.
        """
        while True:
            await self._until(1, None)
            await self._until(max_videos, wait_s)
            if taken := self._take(max_videos):
                return taken

    def to_fetch(self, max_videos: int) -> list[Waiting]:
        """Requests of the next batch whose frames nobody has asked for, as long as those of `max_videos` at
        most are here or on their way before their batch."""
        waiting = [each for line in self._lines.values() for each in line]
        room = max_videos - sum(len(each.request.videos) for each in waiting if each.frames is not None)
        found = []
        for each in self._picked(max_videos)[0]:
            if each.frames is None and len(each.request.videos) <= room:
                found.append(each)
                room -= len(each.request.videos)
        return found

    def set_aside(self, waiting: Waiting, frames: asyncio.Future[np.ndarray]) -> None:
        """Have a request that a batch took come back, first in its line, when its `frames` are here or lost.

        Until then, of its client only what has its frames is taken: no more of them are on their way, or held
        here, than one batch takes of each client.
        """
        self._late[waiting.request.client] += 1
        frames.add_done_callback(lambda _: self._back(waiting))

    async def _until(self, num_videos: int, wait_s: float | None) -> None:
        """Until so many videos wait, or `wait_s` is over."""
        loop = asyncio.get_running_loop()
        deadline = None if wait_s is None else loop.time() + wait_s
        while self._num_videos() < num_videos:
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return
            self._arrived.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _num_videos(self) -> int:
        ready = (each for line in self._lines.values() for each in line if self._is_ready(each))
        return sum(len(each.request.videos) for each in ready)

    def _is_ready(self, waiting: Waiting) -> bool:
        has_frames = waiting.frames is not None and waiting.frames.done()
        return has_frames or not self._late[waiting.request.client]

    def _take(self, max_videos: int) -> list[Waiting]:
        taken, self._lines = self._picked(max_videos)
        return taken

    def _picked(self, max_videos: int) -> tuple[list[Waiting], dict[str, deque[Waiting]]]:
        """One request of each client in turn, those that fit, until nothing more fits; and the lines without
        them."""
        taken: list[Waiting] = []
        lines = {client: deque(line) for client, line in self._lines.items()}
        num_videos, is_full = 0, False
        while lines and not is_full:
            is_full = True
            for client in list(lines):
                first = lines[client][0]
                size = len(first.request.videos)
                if not self._is_ready(first) or (taken and num_videos + size > max_videos):
                    continue
                is_full = False
                _end_turn(lines, client)
                if not first.answer.done():
                    taken.append(first)
                    num_videos += size
        return taken, lines

    def _back(self, waiting: Waiting) -> None:
        client = waiting.request.client
        self._late[client] -= 1
        if not self._late[client]:
            del self._late[client]
        if not waiting.answer.done():
            self._lines.setdefault(client, deque()).appendleft(waiting)
        self._arrived.set()

    def _answered(self, waiting: Waiting) -> None:
        """Whoever asked has its answer, or has given up: then the request goes out of its line."""
        client = waiting.request.client
        if waiting.frames is not None:
            waiting.frames.cancel()
        self._unanswered[client] -= 1
        if not self._unanswered[client]:
            del self._unanswered[client]
        line = self._lines.get(client)
        if line is not None and waiting in line:
            line.remove(waiting)
            if not line:
                del self._lines[client]


def _end_turn(lines: dict[str, deque[Waiting]], client: str) -> None:
    """Without its first request, a client's line goes to the end of the turns."""
    line = lines.pop(client)
    line.popleft()
    if line:
        lines[client] = line
