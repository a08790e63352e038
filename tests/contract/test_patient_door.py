"""What a door holds behind it, and how long anybody may hold a place of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from ray.serve.exceptions import RayServeException

from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.report.video import encode_mp4
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers import door, http_guard
from reward_servers.desk import Desk
from reward_servers.mp4_frames import read_mp4
from reward_servers.readiness import Patience
from reward_servers.uploads import Refused, UploadLimits
from tests.local_door import TOKEN, local_door, npy, post

GOOD = np.zeros((9, 3, 16, 16), np.uint8)
KEYS = ("dynamic_degree_score", "motion_smoothness_score", "image_quality")


class Pools:
    """Makes pools that take a while to start, and keeps count."""

    views = (FrameSpec(),)

    def __init__(self) -> None:
        self.made: list[tuple[str, ...]] = []
        self.started, self.missing = threading.Event(), False

    def __call__(self, rewards: Sequence[RewardConfig]) -> Pools:
        self.made.append(tuple(reward.key for reward in rewards))
        return self

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        if self.missing:
            raise InfraFailure("there is no server")
        if len(self.made) == 2:
            self.started.set()

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        return [Scores({key: float(i) for i, key in enumerate(KEYS)})] * len(rollouts)


def desk_of(pools: Pools, kept: list[np.ndarray]) -> Desk:
    def keep(array: np.ndarray) -> np.ndarray:
        kept.append(array)
        return array

    return Desk([RewardConfig(key=key) for key in KEYS], pools, keep)  # type: ignore[arg-type]


def test_first_requests_at_the_same_time_share_a_pool_for_each_scorer() -> None:
    """Pools that nobody reaches any more and that hold servers for ever, under names of their own."""
    pools, kept = Pools(), []

    async def ask_all() -> list[dict[str, float]]:
        desk = desk_of(pools, kept)
        subsets = [KEYS, KEYS[:1], KEYS[1:], KEYS[::2], KEYS]
        return await asyncio.gather(*(desk.score(GOOD, "p", subset) for subset in subsets))

    answers = asyncio.run(ask_all())
    assert sorted(pools.made) == [KEYS[:2], KEYS[2:]]
    assert answers[2] == {KEYS[1]: 1.0, KEYS[2]: 2.0} and answers[1] == {KEYS[0]: 0.0}
    assert len(kept) == 5, "two scorers that look at the same frames share them"


def test_a_door_holds_its_servers_before_anybody_asks() -> None:
    """Servers that go for being idle while the door to them is open."""
    pools = Pools()
    with local_door(pools, keys=KEYS):  # type: ignore[arg-type]
        assert pools.started.wait(10)
    assert sorted(pools.made) == [KEYS[:2], KEYS[2:]]


def test_a_server_that_is_missing_at_first_is_found_later() -> None:
    """A door that has to be opened again because a server came up after it."""
    pools = Pools()
    pools.missing = True

    async def opened_then_asked() -> dict[str, float]:
        desk = desk_of(pools, [])
        await desk.open()
        with pytest.raises(InfraFailure):
            await desk.score(GOOD, "p", KEYS)
        pools.missing = False
        return await desk.score(GOOD, "p", KEYS)

    assert len(asyncio.run(opened_then_asked())) == 3


def test_a_server_that_serve_does_not_know_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain 500 that no client understands."""

    def unknown(name: str) -> None:
        raise RayServeException(f"Application '{name}' does not exist.")

    monkeypatch.setattr(door.serve, "get_app_handle", unknown)
    specs = [SimpleNamespace(app_name="reward-x")]
    with pytest.raises(InfraFailure, match=r"'reward-x' does not exist.*rewards up"):
        door._handles(specs, Patience.of(ClusterConfig()))  # type: ignore[arg-type]


def test_a_request_ends_when_its_time_is_over() -> None:
    """Servers that are busy for ever, and callers who hold all places of the door meanwhile."""
    cancelled = threading.Event()

    class Endless(Pools):
        async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
            return []

    with local_door(Endless(), keys=["image_quality"], request_timeout_s=0.3) as url:  # type: ignore[arg-type]
        answer = post(url, npy(GOOD))
    assert (answer.status, answer.error) == (503, "unavailable") and "0.3 s" in answer.body["message"]
    assert cancelled.is_set() and answer.headers["retry-after"]


def test_a_body_that_drips_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen senders of a byte a minute, and nobody else is let in."""
    monkeypatch.setattr(http_guard, "WHOLE_BODY_S", 0.5)
    head = f"POST /v1/scores HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9999\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'
    with local_door(Pools(), keys=["image_quality"]) as url:  # type: ignore[arg-type]
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=0.05) as connection:
            connection.sendall((head + kind + part).encode())
            began, answer = time.monotonic(), b""
            while not answer and time.monotonic() - began < 10:
                connection.sendall(b"-")
                try:
                    answer = connection.recv(4096)
                except TimeoutError:
                    continue
    assert answer.startswith(b"HTTP/1.1 408") and b"too_slow" in answer


def test_what_a_file_says_of_its_enlargement_does_not_get_round_the_limits() -> None:
    """Frames of 2 x 2 pixels, by which scorers fail."""
    file = encode_mp4(np.zeros((3, 3, 16, 16), np.uint8), fps=8, comment="")
    assert read_mp4(file, UploadLimits()).shape == (3, 3, 16, 16)
    with pytest.raises(Refused, match="2x2 pixels"):
        read_mp4(file.replace(b"enlarged 12 times", b"enlarged 96 times"), UploadLimits())
