"""Who holds a connection of the door, how long, and how much of its memory: measured from the other end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import pytest

from astrolabe_ray.report.video import encode_mp4
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers import http_connection, http_guard
from tests.local_door import RED, Answer, ask, connected, form, head, local_door, npy, post

GOOD = np.zeros((9, 3, 16, 16), np.uint8)
LIMITS = {"max_bytes": 60_000, "max_video_bytes": 500_000}
HELD = 700_000
PART = b'--x\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
"""Where the file begins in a form whose parts are marked by `x`."""


class Gate:
    """A pool that answers when it is told to."""

    views = (FrameSpec(),)

    def __init__(self) -> None:
        self.go, self.num_asked = threading.Event(), 0
        self.go.set()

    def __call__(self, _: object) -> Gate:
        return self

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        self.num_asked += 1
        await asyncio.to_thread(self.go.wait, 20)
        return [Scores({"image_quality": 1.0})]


@contextlib.contextmanager
def gated(gate: Gate, **settings: int) -> Iterator[str]:
    with local_door(gate, keys=["image_quality"], **settings) as url:  # type: ignore[arg-type]
        yield url


def until(holds: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def said(connection: socket.socket) -> bytes:
    """All that comes until the door hangs up. Raises TimeoutError when it does not."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def dripping(connection: socket.socket, timeout_s: float = 10) -> bytes:
    """What comes back while a byte is sent every 20 ms, until the door hangs up."""
    received, deadline = b"", time.monotonic() + timeout_s
    connection.settimeout(0.02)
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"x")
            piece = connection.recv(1 << 16)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return received
        if not piece:
            return received
        received += piece
    raise AssertionError(f"still connected after {timeout_s} s")


def chunk(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def num_connections(url: str) -> int:
    """That the door, which is in this process, has at its port."""
    port = int(url.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "SILENCE_S", 0.3)


def test_who_connects_and_says_nothing_is_hung_up_on(impatient: None) -> None:
    """Anybody who reaches the port holds all file descriptors of the door, and needs no token for it."""
    with gated(Gate()) as url:
        silent = [connected(url) for _ in range(5)]
        began = time.monotonic()
        for connection in silent:
            with connection:
                assert said(connection) == b""
        assert 0.2 < time.monotonic() - began < 5
        assert post(url, npy(GOOD)).status == 200


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", head("Content-Length: 9000", token="no")]
)
def test_a_head_that_drips_is_ended(impatient: None, beginning: bytes) -> None:
    """The first one, the one after an answer, and the body that was refused: a byte now and then holds the
    connection for ever, since each of them ends uvicorn's own limit."""
    with gated(Gate()) as url, connected(url) as connection:
        connection.sendall(beginning + b"GET / HTTP/1.1\r\nX-Long: ")
        received = dripping(connection)
        assert received.startswith(b"HTTP/1.1 ") == bool(beginning)


def test_a_head_without_an_end_is_refused() -> None:
    """A header of gigabytes, kept in memory, by somebody without a token."""
    with gated(Gate()) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(200):
                connection.sendall(b"x" * (1 << 16))
            raise AssertionError("12.5 MiB of a header were taken")


def test_who_does_not_read_answers_is_hung_up_on(impatient: None) -> None:
    """Answers that nobody takes wait in memory, and their connection stays."""
    with gated(Gate()) as url, connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)  # more than the kernel holds
        assert until(lambda: num_connections(url) == 1)
        assert until(lambda: num_connections(url) == 0)


def test_work_and_slow_uploads_are_not_taken_for_silence(impatient: None) -> None:
    """A limit on heads that ends honest requests."""
    gate = Gate()
    gate.go.clear()
    body, kind = form(npy(GOOD), {"prompt": RED})
    lines = head(f"Content-Length: {len(body)}").replace(b"multipart/form-data; boundary=x", kind.encode())
    with gated(gate) as url, connected(url) as connection:
        connection.sendall(lines)
        for part in np.array_split(np.frombuffer(body, np.uint8), 4):
            time.sleep(0.2)
            connection.sendall(part.tobytes())
        assert until(lambda: gate.num_asked == 1)
        time.sleep(0.6)
        gate.go.set()
        assert b"200 OK" in connection.recv(1 << 16)


def test_a_body_that_stalls_is_ended_and_its_place_is_free(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only place of a door, held by somebody who went away without hanging up."""
    monkeypatch.setattr(http_guard, "BODY_TIMEOUT_S", 0.5)
    with gated(Gate(), max_requests=1) as url, connected(url) as connection:
        connection.sendall(head("Content-Length: 9000") + PART + npy(GOOD)[:500])
        assert until(lambda: post(url, npy(GOOD)).error == "busy")
        received = said(connection)
        assert received.startswith(b"HTTP/1.1 408") and b'"too_slow"' in received
        assert f"{len(PART) + 500} bytes came".encode() in received
        assert post(url, npy(GOOD)).status == 200


def test_bodies_are_bounded_together_before_they_are_read() -> None:
    """Sixteen uploads of the largest size: each is allowed, together they end the process."""
    with gated(Gate(), max_held_bytes=630_000, **LIMITS) as url:
        large = [connected(url) for _ in range(6)]
        for connection in large[:5]:
            connection.sendall(head("Content-Length: 120000"))
        time.sleep(0.3)
        large[5].sendall(head("Content-Length: 120000"))
        refused = large[5].recv(4096)
        assert refused.startswith(b"HTTP/1.1 503") and b'"busy"' in refused and b"retry-after: 2" in refused
        assert b"hold 600000 of 630000 bytes, and this one needs 120000 more" in refused
        assert post(url, npy(GOOD)).status == 200, "a small one fits"
        for connection in large:
            connection.close()
        assert until(lambda: post(url, npy(np.zeros((60, 3, 16, 16), np.uint8))).status == 200)


def test_a_body_that_does_not_say_its_length_is_bounded_while_it_comes() -> None:
    """Chunks would get round what is announced."""
    with gated(Gate(), max_held_bytes=630_000, **LIMITS) as url:
        large = [connected(url) for _ in range(5)]
        for connection in large:
            connection.sendall(head("Content-Length: 120000"))
        time.sleep(0.3)
        with connected(url) as chunked:
            chunked.sendall(head("Transfer-Encoding: chunked") + chunk(PART.ljust(20_000, b"-")))
            chunked.sendall(chunk(bytes(20_000)))
            refused = chunked.recv(4096)
        assert refused.startswith(b"HTTP/1.1 503") and b'"busy"' in refused and b"retry-after: 2" in refused
        for connection in large:
            connection.close()


@pytest.mark.parametrize("kind", ["mp4", "npy"])
def test_decoded_frames_count_and_are_given_back(kind: str) -> None:
    """A few kilobytes of mp4 become a gigabyte of frames, which stay until the video is scored."""
    still = np.zeros((4, 3, 200, 200) if kind == "mp4" else (60, 3, 18, 18), np.uint8)
    file = encode_mp4(still, fps=8, comment="") if kind == "mp4" else npy(still)
    most, num_fit = (HELD, 1) if kind == "mp4" else (626_000, 5)  # body and frames of an npy: 2 x 58 kB
    gate = Gate()
    gate.go.clear()
    with gated(gate, max_held_bytes=most, **LIMITS) as url:
        answers: list[Answer] = []
        callers = [threading.Thread(target=lambda: answers.append(post(url, file))) for _ in range(num_fit)]
        for caller in callers:
            caller.start()
        assert until(lambda: gate.num_asked == num_fit)
        refused = post(url, file)
        assert (refused.status, refused.error, refused.headers["retry-after"]) == (503, "busy", "2"), refused
        assert ask(f"{url}/health", token=None).status == 200
        gate.go.set()
        for caller in callers:
            caller.join(20)
        assert [answer.status for answer in answers] == [200] * num_fit
        for _ in range(num_fit + 1):
            assert post(url, file).status == 200
