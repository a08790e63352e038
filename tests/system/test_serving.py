"""Reward servers under load and over time: replicas come and go, clients share them, leases run out."""

from __future__ import annotations

import os
import signal
import sys
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import ConfigError, InfraFailure
from reward_servers.app import ServerSpec, server_specs
from reward_servers.batch_scoring import ScoreRequest
from reward_servers.bench import bench
from reward_servers.deploy import down, ensure, handle_of, reports_of, scale, status
from reward_servers.readiness import Patience
from tests.reward_client import hire_client
from tests.reward_replicas import replica_pids
from tests.waiting_scorer import KEY, numbered

pytestmark = pytest.mark.system
WAITS = RewardConfig(
    key=KEY,
    options="seconds=0.25",
    num_cpus=0.1,
    max_batch_size=4,
    upscale_delay_s=1,
    downscale_delay_s=2,
    max_attempts=8,
)
NAME = ServerSpec.of(WAITS).app_name
PATIENCE = Patience(placement_timeout_s=60, load_timeout_s=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def client(cluster: None) -> Iterator[Any]:
    """A client whose server runs."""
    made = hire_client(WAITS, "first")
    ray.get(made.start.remote(), timeout=120)
    yield made
    ray.get(made.stop.remote(), timeout=30)
    ray.kill(made)


def until(holds: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.2)
    return holds()


def throughput(client: Any, num_videos: int, in_flight: int) -> float:
    """Videos per second; every score must be there and belong to its video."""
    began = time.monotonic()
    scores, _ = ray.get(client.ask.remote(range(num_videos), in_flight), timeout=120)
    assert scores == list(range(num_videos))
    return num_videos / (time.monotonic() - began)


def test_a_second_run_scores_within_two_seconds_and_servers_survive_both(client: Any) -> None:
    """Each run with servers of its own would load a 7B model twice; the first to end would take it away."""
    pids = replica_pids()
    second = hire_client(WAITS, "second")
    ray.get(second.ask.remote([], 1), timeout=60)  # its process is there
    seconds = ray.get(second.start.remote(), timeout=60)
    both = [client.ask.remote(range(40), 8), second.ask.remote(range(100, 140), 8)]
    (first_scores, _), (second_scores, _) = ray.get(both, timeout=60)
    print(f"first score of a second run after {seconds:.2f} s")
    assert (first_scores, second_scores) == (list(range(40)), list(range(100, 140)))
    assert seconds < 2
    (server,) = status()
    assert {name.rpartition("-")[0] for name, _ in server.clients} == {"first", "second"}
    ray.get(second.stop.remote(), timeout=30)
    ray.kill(second)
    ensure([ServerSpec.of(WAITS)], PATIENCE)
    assert replica_pids() == pids and len(pids) == 1
    assert ray.get(client.ask.remote([7], 1), timeout=30)[0] == [7]


@pytest.mark.slow
def test_a_flood_of_one_client_delays_another_by_few_batches(client: Any) -> None:
    """First come, first served would let a run with 200 requests in flight stop all others."""
    small = hire_client(WAITS, "small")
    ray.get(small.start.remote(), timeout=60)
    _, alone = ray.get(small.ask.remote(range(6), 1), timeout=60)
    flood = client.ask.remote(range(90), 90)
    time.sleep(1)
    _, beside = ray.get(small.ask.remote(range(6), 1), timeout=60)
    is_flooded = not ray.wait([flood], timeout=0)[0]
    assert ray.get(flood, timeout=60)[0] == list(range(90))
    print(f"alone {max(alone):.2f} s, beside a flood {max(beside):.2f} s")
    assert is_flooded, "the flood ended too soon to tell"
    assert max(beside) < 3 * max(alone)
    ray.get(small.stop.remote(), timeout=30)
    ray.kill(small)


@pytest.mark.slow
def test_a_replica_killed_in_mid_batch_loses_no_score(client: Any) -> None:
    """A crash would cost the run the scores of every request that was there."""
    (victim,) = replica_pids()
    asked = client.ask.remote(range(32), 32)
    time.sleep(0.6)
    os.kill(victim, signal.SIGKILL)
    scores, _ = ray.get(asked, timeout=90)
    assert scores == list(range(32))
    assert victim not in replica_pids()


@pytest.mark.slow
def test_frames_are_not_waited_for_before_a_replica_takes_the_request_and_are_freed(client: Any) -> None:
    """References that Serve sees are fetched even for a replica that refuses; nested ones leaked once."""
    handle = handle_of(NAME)
    late: Any = ray.remote(num_cpus=0)(lambda: (time.sleep(3), numbered(77))[1])
    pending = late.remote()
    answer = handle.score.remote(ScoreRequest("r", (pending,), ("a caption",), "nested"))
    assert until(lambda: "nested" in reports_of(NAME)[0].clients, 2)
    assert not ray.wait([pending], timeout=0)[0], "the frames were not there yet"
    assert answer.result(timeout_s=30) == {"number": [77.0]}
    free = ray.available_resources()["object_store_memory"]
    videos = [ray.put(np.ones((1, 3, 1000, 1000), np.uint8)) for _ in range(12)]
    requests = [ScoreRequest(str(i), (video,), ("a caption",), "nested") for i, video in enumerate(videos)]
    answers = [handle.score.remote(request) for request in requests]
    assert until(lambda: free - ray.available_resources()["object_store_memory"] > 30e6, 10)
    assert [each.result(timeout_s=30) for each in answers] == [{"number": [257.0]}] * 12
    del videos, requests, answers
    assert until(lambda: free - ray.available_resources()["object_store_memory"] < 1e6, 10)
    handle.shutdown()


@pytest.mark.slow
def test_a_replica_whose_scorer_broke_is_replaced_and_only_the_guilty_request_fails(cluster: None) -> None:
    """An error of CUDA stays until the process ends; every later request of every run failed."""
    reward = WAITS.model_copy(update={"options": "seconds=0.05,breaks_at=13", "max_attempts": 2})
    name = ServerSpec.of(reward).app_name
    client = hire_client(reward, "broken")
    ray.get(client.start.remote(), timeout=120)
    (first,) = [report.pid for report in reports_of(name)]
    began = time.monotonic()
    with pytest.raises(InfraFailure, match=r"in 2 attempts: .*an illegal memory access"):
        ray.get(client.ask.remote([13], 1), timeout=120)
    assert ray.get(client.ask.remote(range(12), 12), timeout=120)[0] == list(range(12))
    print(f"two replicas broken and replaced after {time.monotonic() - began:.0f} s")
    assert first not in {report.pid for report in reports_of(name)}
    ray.get(client.stop.remote(), timeout=30)
    ray.kill(client)
    down([name])


@pytest.mark.slow
def test_a_server_whose_scorer_cannot_be_loaded_is_named_soon(cluster: None) -> None:
    """Serve tries twenty times by default, minutes for a large model, and says no more than that it waits."""
    broken = ServerSpec.of(WAITS.model_copy(update={"options": "module=not_to_be_had"}))
    began = time.monotonic()
    with pytest.raises(InfraFailure, match=broken.app_name) as caught:
        ensure([broken], PATIENCE)
    print(f"refused after {time.monotonic() - began:.0f} s")
    assert "not_to_be_had" in str(caught.value)
    assert time.monotonic() - began < 90
    down([broken.app_name])


@pytest.mark.slow
def test_a_server_that_was_taken_down_during_a_run_is_started_again(client: Any) -> None:
    """`rewards down` of one person would end the runs of all others."""
    down([NAME])
    assert ray.get(client.ask.remote([1, 2, 3], 3), timeout=60)[0] == [1, 2, 3]


@pytest.mark.slow
def test_three_replicas_give_more_than_twice_the_throughput_of_one_without_a_restart(client: Any) -> None:
    """More replicas that do not score more waste GPUs; a restart loads every model again."""
    pids = replica_pids()
    one = throughput(client, 60, 48)
    scale(NAME, 3, 3)
    assert until(lambda: status()[0].num_replicas == 3, 60)
    three = throughput(client, 180, 48)
    print(f"{one:.1f} videos/s with one replica, {three:.1f} with three: {three / one:.2f}")
    assert pids < replica_pids()
    assert three / one >= 2.5
    measured = bench(NAME, seconds=2, in_flight=24, size=(1, 4, 4))
    assert measured.num_replicas == 3 and 24 < measured.num_videos / measured.seconds < 49  # 3 x 4 / 0.25
    assert max(size for size, _ in measured.batch_sizes) == 4
    assert 0.25 < measured.p50_s <= measured.p99_s
    scale(NAME, 1, 1)
    assert until(lambda: len(replica_pids()) == 1, 30)
    with pytest.raises(ConfigError, match="--min=2 --max=2"):
        scale(NAME, 2, 1)


@pytest.mark.slow
def test_replicas_follow_the_load_up_and_down_and_lose_nothing(client: Any) -> None:
    """Servers that do not grow are the neck of a run, those that do not shrink hold GPUs."""
    scale(NAME, 1, 3)
    asked = client.ask.remote(range(900), 40)
    began = time.monotonic()
    assert until(lambda: status()[0].num_replicas == 3, 60)
    print(f"three replicas after {time.monotonic() - began:.0f} s of load")
    assert ray.get(asked, timeout=180)[0] == list(range(900))
    began = time.monotonic()
    trickle: list[float] = []
    while status()[0].target_replicas > 1 and time.monotonic() < began + 90:
        trickle += ray.get(client.ask.remote([len(trickle)], 1), timeout=30)[0]
    print(f"back to one after {time.monotonic() - began:.0f} s")
    assert status()[0].target_replicas == 1
    assert until(lambda: len(replica_pids()) == 1, 60)
    assert trickle == list(range(len(trickle)))


@pytest.mark.slow
def test_a_scorer_in_its_own_environment_goes_when_nobody_holds_it(cluster: None, tmp_path: Path) -> None:
    """Packages of two models that exclude each other; a GPU held for ever by a server that nobody uses."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    ours = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join(ours))
    (site / "only_there.py").write_text("NUMBER = 42\n")
    reward = WAITS.model_copy(
        update={
            "options": "seconds=0,module=only_there",
            "python": str(tmp_path / "env/bin/python"),
            "num_gpus": 0.5,
            "max_batch_size": 1,
        }
    )
    (spec,) = server_specs([reward], idle_timeout_s=2)
    client = hire_client(reward, "holder", idle_timeout_s=2)
    assert ray.get(client.start.remote(), timeout=60) > 0
    assert ray.get(client.ask.remote([1], 1), timeout=30)[0] == [42]
    assert ray.available_resources()["GPU"] == 0.5
    time.sleep(8)  # longer than the timeout and a health check
    assert [server.lease_left_s <= 2 for server in status() if server.name == spec.app_name] == [True]
    ray.get(client.stop.remote(), timeout=30)
    ray.kill(client)
    began = time.monotonic()
    assert until(lambda: spec.app_name not in {server.name for server in status()}, 30)
    print(f"gone {time.monotonic() - began:.1f} s after its client, with a timeout of 2 s")
    assert until(lambda: ray.available_resources().get("GPU") == 1.0, 20)
