"""One connection of the door: who connects and says nothing, or never comes to the point, is hung up on.

uvicorn bounds the pause after an answer only. Without a limit, anybody who reaches the port could hold all
its file descriptors, or have it keep a header that never ends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SILENCE_S = 10.0
"""From the connection, or the last answer, until a whole request head is here; what is left of a body that
was refused has to come within this time, too. Also until somebody who does not read answers does."""
MAX_HEAD_BYTES = 64 << 10


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's, with limits on a request's head."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._hang_up: asyncio.TimerHandle | None = None
        self._is_in_head, self._head_bytes = False, 0  # after the piece that the head began in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_limit()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The head of a request has at most {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if not self.flow.write_paused:
            self._forget_limit()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():  # no other came in advance
            self._limit()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._hang_up is None:
            self._limit()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_limit()

    def _limit(self) -> None:
        self._forget_limit()
        self._hang_up = self.loop.call_later(SILENCE_S, self.transport.abort)

    def _forget_limit(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None
