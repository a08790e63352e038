"""Stands before the routes of the door: who may ask, how much, and how many at a time.

It decides before a byte of a request's body is read, and counts the bytes while they come. Bounded by
`max_requests` and a `ByteBudget`: past them callers are told to come back, nothing waits here.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_servers.byte_budget import RETRY_AFTER_S, ByteBudget, Take

GUARDED = "/v1/"
BODY_TIMEOUT_S = 60.0
"""Between two pieces of a body; whoever sends slower holds a place that others want."""
WHOLE_BODY_S, SLOWEST_BYTES_PER_S = 30.0, 256 << 10
"""A body may take so long, and longer by its bytes at this rate: a byte now and then holds a place, too."""
FORM_BYTES = 64 << 10
"""What the form around a file may take."""


def digest_of(token: str) -> bytes:
    """What a door keeps of its token."""
    return hashlib.sha256(token.encode()).digest()


class Guard:
    """ASGI middleware."""

    def __init__(
        self, app: ASGIApp, *, token_digest: bytes, max_bytes: int, max_requests: int, budget: ByteBudget
    ) -> None:
        """`max_bytes`: of one body; `budget`: of all that are here."""
        self._app, self._digest, self._budget = app, token_digest, budget
        self._max_bytes, self._max_requests = max_bytes + FORM_BYTES, max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        with self._budget.share() as take:
            announced = headers.get("content-length")
            try:
                take(int(announced or 0))
            except HTTPException as full:
                await problem(503, "busy", full.detail, dict(full.headers or {}))(scope, receive, send)
                return
            self._num_requests += 1
            try:
                body = _Counted(receive, self._max_bytes, take if announced is None else None)
                await self._app(scope, body, send)
            finally:
                self._num_requests -= 1

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            wanted = "this needs the header 'Authorization: Bearer TOKEN'"
            return problem(401, "unauthorized", wanted, {"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(digest_of(token), self._digest):
            return problem(403, "forbidden", "this is not the token of this door")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_bytes:
            return too_large(self._max_bytes)
        if self._num_requests >= self._max_requests:
            busy = f"{self._num_requests} requests are at work; come back in {RETRY_AFTER_S} s"
            return problem(503, "busy", busy, {"Retry-After": str(RETRY_AFTER_S)})
        return None


class _Counted:
    """A request's body, up to a number of bytes and as long as something comes."""

    def __init__(self, receive: Receive, max_bytes: int, take: Take | None) -> None:
        """`take`: called for each piece of a body that does not say how long it is."""
        self._receive, self._max_bytes, self._take, self._num_bytes = receive, max_bytes, take, 0
        self._is_whole, self._began = False, time.monotonic()

    async def __call__(self) -> Message:
        if self._is_whole:  # what comes now is the end of the connection, when it may please
            return await self._receive()
        allowed_s = WHOLE_BODY_S + self._num_bytes / SLOWEST_BYTES_PER_S
        left_s = self._began + allowed_s - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, min(BODY_TIMEOUT_S, left_s)))
        except asyncio.TimeoutError:
            came = f"{self._num_bytes} bytes came in {time.monotonic() - self._began:.0f} s"
            raise HTTPException(408, f"{came}, the rest not; send it faster, or a smaller file") from None
        piece = len(message.get("body", b""))
        self._num_bytes += piece
        self._is_whole = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise HTTPException(413, f"the request is larger than {self._max_bytes} bytes")
        if self._take is not None:
            self._take(piece)
        return message


def problem(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """What every error looks like: `{"error": "too_large", "message": "..."}`."""
    content: dict[str, Any] = {"error": code, "message": message}
    return JSONResponse(content, status, headers)


def too_large(max_bytes: int) -> JSONResponse:
    return problem(413, "too_large", f"the request is larger than {max_bytes} bytes; cut or scale the video")
