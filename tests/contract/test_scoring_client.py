"""The client against a real door, and against servers that misbehave on purpose."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from astrolabe_ray.data.sprites.captions import SpriteCaption
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import AstrolabeError, ConfigError, DataFailure, InfraFailure
from reward_servers.client import ScoringClient
from reward_servers.messages import Point
from tests.local_door import KEYS, RED, TOKEN, ask, local_door, npy, post

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    with local_door() as url:
        yield url


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render_clips([SpriteCaption("small", "red", "circle", "moves left", "black")], seed=5)[0]


def test_the_client_gets_what_a_plain_request_gets(door: str, clip: np.ndarray, tmp_path: Path) -> None:
    """A client that mixes up fields, or loses curves."""
    wanted = post(door, npy(clip), points=4).body
    file = tmp_path / "clip.npy"
    np.save(file, clip)
    with ScoringClient(door, TOKEN) as client:
        for video in (clip, file, npy(clip)):
            scored = client.score(video, RED, num_points=4)
            assert scored.scores == pytest.approx(wanted["scores"])
            assert scored.curves == {
                k: [Point(**p) for p in points] for k, points in wanted["curves"].items()
            }
        assert client.score(clip, RED, ["image_quality"]).scores.keys() == {"image_quality"}
        served = ask(f"{door}/v1/rewards").body["rewards"]
        assert [vars(reward) for reward in client.rewards()] == served
        assert [reward.key for reward in client.rewards()] == list(KEYS)


@pytest.mark.parametrize(
    ("token", "video", "rewards", "error", "words"),
    [
        ("no token at all", None, [], ConfigError, "not the token of this door"),
        (TOKEN, None, ["tiny_clap"], ConfigError, "there is tiny_clip"),
        (TOKEN, np.zeros((5, 3, 16, 16)), [], DataFailure, "float64; needed is uint8"),
        (TOKEN, Path("nowhere.mp4"), [], DataFailure, "nowhere.mp4"),
        (TOKEN, b"GIF89a", [], DataFailure, "mp4 files or npy"),
    ],
)
def test_refusals_arrive_as_the_errors_of_this_project(
    door: str, clip: np.ndarray, token: str, video: object, rewards: list[str], error: type, words: str
) -> None:
    """A program that can't tell its own mistake from a broken server."""
    with ScoringClient(door, token) as client, pytest.raises(error, match=words):
        client.score(clip if video is None else video, RED, rewards)  # type: ignore[arg-type]


@contextmanager
def answering(*answers: tuple[int, str, dict[str, str]]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers one after the other, the last one for ever; and when it was asked."""
    times: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text, headers = answers[min(len(times), len(answers) - 1)]
            times.append(time.monotonic())
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", times
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY = (503, '{"error": "busy", "message": "come back"}', {"Retry-After": "1"})


def test_a_busy_door_is_asked_again_when_it_says() -> None:
    """A client that gives up at once, or hammers at a server that is full."""
    with answering(BUSY, (200, '{"rewards": []}', {})) as (url, times), ScoringClient(url, TOKEN) as client:
        assert client.rewards() == []
        assert len(times) == 2 and times[1] - times[0] >= 1


@pytest.mark.parametrize(
    ("answer", "num_asked", "error", "words"),
    [
        ((503, BUSY[1], {}), 2, InfraFailure, "2 attempts: come back"),
        (
            (502, "<html>", {"Content-Type": "text/html"}),
            2,
            InfraFailure,
            "502 Bad Gateway; is this the door",
        ),
        ((408, BUSY[1], {}), 2, InfraFailure, "2 attempts: come back"),
        ((429, BUSY[1], {}), 2, InfraFailure, "2 attempts: come back"),
        (
            (200, "<html>", {"Content-Type": "text/html"}),
            1,
            ConfigError,
            "answers without JSON; is this the door",
        ),
        ((404, "<html>", {}), 1, ConfigError, "is this the door"),
        ((500, "boom", {"Content-Type": "text/plain"}), 1, InfraFailure, "failed with 500"),
        ((404, "<html>", {"Content-Type": "text/html"}), 1, ConfigError, "is this the door"),
    ],
)
def test_what_will_not_help_is_not_tried_again(
    answer: tuple[int, str, dict[str, str]], num_asked: int, error: type[AstrolabeError], words: str
) -> None:
    """A fault that is asked for five times, or one of the network that is taken for an answer."""
    with answering(answer) as (url, times), ScoringClient(url, TOKEN, max_attempts=2) as client:
        with pytest.raises(error, match=words):
            client.rewards()
        assert len(times) == num_asked


def test_a_door_that_is_at_work_is_not_asked_again() -> None:
    """Five requests of ten minutes each, of which the door still works at four."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with (
            ScoringClient(url, TOKEN, timeout_s=0.2) as client,
            pytest.raises(InfraFailure, match=r"did not answer in 0\.2 s"),
        ):
            client.rewards()
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_nobody_there_and_no_address_are_told_apart() -> None:
    """A typing mistake that looks like a server that is down."""
    with answering(BUSY) as (url, _):
        pass
    with pytest.raises(InfraFailure, match="did not answer in 1 attempts: ConnectError"):
        ScoringClient(url, TOKEN, max_attempts=1).rewards()
    with pytest.raises(ConfigError, match="'gpu-head:8100' is no URL of a door"):
        ScoringClient("gpu-head:8100", TOKEN)


def test_the_client_needs_neither_ray_nor_torch() -> None:
    """It runs where videos are, which may be a laptop."""
    program = "import sys, reward_servers.client; print(sorted({'ray', 'torch', 'cv2'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
