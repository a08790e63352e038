"""The HTTP door on real Ray Serve: asks the reward servers that run, closes, comes back, keeps its port."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import ray
from ray import serve

from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.data.sprites.captions import SpriteCaption
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import InfraFailure
from reward_servers.app import server_specs
from reward_servers.client import ScoringClient
from reward_servers.deploy import down, ensure, status
from reward_servers.door import DoorSpec, close_doors, doors, open_door
from reward_servers.http_guard import digest_of
from reward_servers.readiness import Patience
from tests.local_door import RED, TOKEN, local_door, npy, post
from tests.reward_replicas import replica_pids

REWARDS = tuple(RewardConfig(key=key, num_cpus=0.1) for key in ("tiny_clip", "motion_quality"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ensure(server_specs(REWARDS), Patience.of(ClusterConfig()))
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def door(cluster: None) -> str:
    return open_door(DoorSpec(REWARDS, "127.0.0.1", free_port(), digest_of(TOKEN), None))


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render_clips([SpriteCaption("small", "red", "circle", "moves left", "black")], seed=5)[0]


def door_pids() -> set[int]:
    gcs = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    found = set()
    for process in psutil.process_iter():
        try:
            if " ".join(process.cmdline()).startswith("ray::ServeReplica:scoring-door-"):
                found |= {process.pid} if gcs in process.parents()[0].cmdline() else set()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
    return found


def test_the_door_asks_the_reward_servers_that_run(door: str, clip: np.ndarray) -> None:
    """A door that loads its own models, or whose scores are others than a run's."""
    servers = replica_pids()
    assert len(servers) == 2
    with local_door(keys=["tiny_clip", "motion_quality"]) as here:
        wanted = post(here, npy(clip), points=3).body
    with ScoringClient(door, TOKEN) as client:
        scored = client.score(clip, RED, num_points=3)
        assert scored.scores == pytest.approx(wanted["scores"], abs=2e-5)
        for key, points in wanted["curves"].items():
            assert [vars(point) for point in scored.curves[key]] == [
                pytest.approx(point, abs=2e-5) for point in points
            ]
    assert replica_pids() == servers
    assert [(d.name, d.status) for d in doors()] == [(f"scoring-door-{door.rpartition(':')[2]}", "RUNNING")]
    assert len(status()) == 2, "it is no reward server"


def test_an_open_door_holds_its_servers(door: str) -> None:
    """Servers that nobody asked through the door, and that go for being idle while it is open."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        holders = [sorted(name for name, _ in server.clients) for server in status()]
        if all(any(name.startswith("scoring-door-") for name in names) for names in holders):
            break
        time.sleep(0.5)
    assert len(holders) == 2
    for names in holders:
        assert len([name for name in names if name.startswith("scoring-door-")]) == 1, names


def test_bad_requests_leave_door_and_servers_as_they_are(door: str, clip: np.ndarray) -> None:
    """One caller's mistake that costs the others a restart."""
    before = replica_pids() | door_pids()
    assert len(before) == 3
    assert post(door, npy(clip), token="another").status == 403
    assert post(door, npy(clip), prompt="a cat", rewards="tiny_clip").error == "not_scored"
    assert post(door, npy(clip[:1])).error == "not_scored"
    assert post(door, b"\x00\x00\x00\x18ftypisom" + bytes(100)).error == "bad_mp4"
    assert post(door, npy(clip)).status == 200
    assert replica_pids() | door_pids() == before


@pytest.mark.slow
def test_a_killed_door_opens_again_and_callers_wait_for_it(door: str, clip: np.ndarray) -> None:
    """A door that somebody has to open by hand at night."""
    (pid,) = door_pids()
    os.kill(pid, signal.SIGKILL)
    with ScoringClient(door, TOKEN, max_attempts=8) as client:
        assert client.score(clip, RED).scores.keys() == {"tiny_clip", "motion_quality"}
    assert door_pids() and pid not in door_pids()


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(door: str, cluster: None) -> None:
    """A door that seems open while another program answers."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            InfraFailure, match=f"can't listen on 127.0.0.1 port {port}: Address already in use"
        ):
            open_door(DoorSpec(REWARDS, "127.0.0.1", port, digest_of(TOKEN), None))
    assert len(doors()) == 1


@pytest.mark.slow
def test_a_door_is_opened_anew_on_its_port_and_closed(door: str, clip: np.ndarray) -> None:
    """Another token must count at once; a closed door must not listen. Servers that are gone are named, and
    found again once they run."""
    port = int(door.rpartition(":")[2])
    assert open_door(DoorSpec(REWARDS, "127.0.0.1", port, digest_of("another token"), None)) == door
    assert post(door, npy(clip)).status == 403
    assert post(door, npy(clip), token="another token").status == 200
    down([status()[0].name])
    began = time.monotonic()
    answer = post(door, npy(clip), token="another token")
    assert (answer.status, answer.error) == (503, "unavailable"), answer
    assert time.monotonic() - began < 30
    ensure(server_specs(REWARDS), Patience.of(ClusterConfig()))
    with ScoringClient(door, "another token") as client:
        assert client.score(clip, RED).scores.keys() == {"tiny_clip", "motion_quality"}, "found again"
    close_doors()
    assert doors() == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
