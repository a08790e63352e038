"""How many bytes all requests of the door may hold together: bodies, and the frames that they decode to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

RETRY_AFTER_S = 2

Take = Callable[[int], None]
"""Called with a number of bytes before they are held. Raises HTTPException 503 when there is no room."""


class ByteBudget:
    """Of one event loop. Bounded by `max_bytes`: past it callers are told to come back, nobody waits."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._held = max_bytes, 0

    @contextmanager
    def share(self) -> Iterator[Take]:
        """What one request takes; all of it is given back when the request ends."""
        taken = 0

        def take(num_bytes: int) -> None:
            nonlocal taken
            if self._held + num_bytes > self._max_bytes:
                raise HTTPException(
                    503,
                    f"requests hold {self._held} of {self._max_bytes} bytes, and this one needs {num_bytes} "
                    f"more; come back in {RETRY_AFTER_S} s",
                    {"Retry-After": str(RETRY_AFTER_S)},
                )
            self._held += num_bytes
            taken += num_bytes

        try:
            yield take
        finally:
            self._held -= taken
