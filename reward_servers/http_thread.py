"""An HTTP server in a thread of its own, so that what it is busy with holds up nobody else in its process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from astrolabe_ray.errors import InfraFailure
from reward_servers.http_connection import TimedProtocol

START_TIMEOUT_S = 20.0
BACKLOG = 64
KEEP_ALIVE_S = 5


class HttpThread:
    """Serves `app` from construction until `stop`."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """`port` 0: any free one. Raises InfraFailure when it can't be had."""
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as reason:
            listener.close()
            raise InfraFailure(
                f"can't listen on {host} port {port}: {reason.strerror}; name another"
            ) from None
        self.port: int = listener.getsockname()[1]
        settings = uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            backlog=BACKLOG,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        self._wait_until_started(listener)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._server.started

    def stop(self) -> None:
        """Requests that are at work are finished first."""
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT_S)

    def _wait_until_started(self, listener: socket.socket) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                with contextlib.suppress(OSError):
                    listener.close()
                raise InfraFailure(f"the HTTP server on port {self.port} did not start")
            time.sleep(0.01)
