"""The runtime on a real cluster of one node that it started itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayTaskError
from ray.util import placement_group_table

from astrolabe_ray.config.schema import ClusterConfig
from astrolabe_ray.errors import ConfigError, PayloadsLost
from astrolabe_ray.runtime.cluster import Cluster, connect
from astrolabe_ray.runtime.gallery import RayGallery
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.runtime.placement import bundle, release, reserve
from astrolabe_ray.runtime.preflight import cluster_room
from astrolabe_ray.runtime.ray_metrics import RayMetrics

pytestmark = pytest.mark.system
MORE_CPUS = (os.cpu_count() or 1) + 1


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = connect(ClusterConfig(address="local"), min_cpus=MORE_CPUS - 0.5)
        yield cluster
        ray.shutdown()


def all_free() -> bool:
    return ray.available_resources().get("CPU") == MORE_CPUS


def test_a_cluster_that_is_started_here_offers_what_the_run_reserves(cluster: Cluster) -> None:
    """The demo would wait for ever for room on a laptop with two cores."""
    assert cluster.started_here
    total, free = cluster_room()
    assert total.cpus == free.cpus == MORE_CPUS
    assert total.gpus == 0
    assert total.object_store_bytes > 2**26
    with pytest.raises(ConfigError, match="nobody listens"):
        connect(ClusterConfig(address="127.0.0.1:1"))
    assert ray.is_initialized()


def test_an_array_is_read_where_it_lies() -> None:
    """100 MB copied per video and reader; an array that can be written would be everybody's."""
    reference = ray.put(np.arange(10**6, dtype=np.uint8))
    first, second = (RayBlobStore().get(reference) for _ in range(2))
    assert isinstance(first, np.ndarray)
    assert isinstance(second, np.ndarray)
    assert not first.flags.writeable
    assert first.ctypes.data == second.ctypes.data
    np.testing.assert_array_equal(first, np.arange(10**6, dtype=np.uint8))


class Maker:
    """Something that makes payloads, late or never."""

    def late(self) -> int:
        time.sleep(30)
        return 1

    def broken(self) -> int:
        raise ConfigError("model lacks vae/config.json")


def new_maker() -> Any:
    options: Any = ray.remote(num_cpus=0)
    return options(Maker).remote()


def test_a_payload_that_does_not_come_or_is_lost_is_a_failure_of_the_cluster() -> None:
    """A learner rank that waits for ever, with all the others in the collective."""
    maker = new_maker()
    with pytest.raises(ConfigError, match="lacks vae"):
        RayBlobStore().get(maker.broken.remote())
    late = maker.late.remote()
    with pytest.raises(PayloadsLost, match=r"reading a payload within 0\.2 s: GetTimeoutError"):
        RayBlobStore(timeout_s=0.2).get(late)
    ray.kill(maker)
    with pytest.raises(PayloadsLost, match="ActorDiedError"):
        RayBlobStore(timeout_s=30).get(late)


def test_many_payloads_share_one_time_limit() -> None:
    """Fifty lost ones at two minutes each: the other ranks' collective gives up first."""
    maker = new_maker()
    here, late = ray.put(np.arange(3)), [maker.late.remote() for _ in range(8)]
    start = time.monotonic()
    read = RayBlobStore(timeout_s=1).get_all([here, *late, here])
    assert time.monotonic() - start < 4
    np.testing.assert_array_equal(read[0], [0, 1, 2])
    np.testing.assert_array_equal(read[-1], [0, 1, 2])  # a sample may be there twice
    assert {type(lost) for lost in read[1:-1]} == {PayloadsLost}
    assert RayBlobStore().get_all([]) == []
    ray.kill(maker)


async def test_room_is_reserved_and_given_back() -> None:
    """Rooms that nobody owns after a run."""
    group = await reserve([bundle(1, 0)] * MORE_CPUS, name="all", timeout_s=20)
    assert ray.available_resources().get("CPU", 0) == 0
    with pytest.raises(ConfigError) as caught:
        await reserve([bundle(1, 0)], name="rollout-9", timeout_s=0.5)
    assert str(caught.value).startswith(
        "no room for rollout-9 after 0.5 s: it needs 1 x {'CPU': 1}, all nodes together have "
        "{'CPU': 0.0, 'GPU': 0.0} free."
    )
    release(group)
    await until(all_free)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


async def test_two_runs_find_room_for_roles_of_the_same_name() -> None:
    """Ray refuses a placement group whose name is taken: the second run on a cluster ended in a traceback."""
    groups = [await reserve([bundle(1, 0)], name="rollout-0", timeout_s=20) for _ in range(2)]
    assert ray.available_resources()["CPU"] == MORE_CPUS - 2
    for group in groups:
        release(group)
    await until(all_free)


async def test_whoever_stops_waiting_for_room_leaves_nothing_and_waits_no_longer() -> None:
    """Ctrl-C while a cluster adds nodes: the nodes come, for nobody; the program hangs for two minutes."""
    start = time.monotonic()
    waiting = asyncio.ensure_future(reserve([bundle(64, 0)], name="large", timeout_s=120))
    await asyncio.sleep(0.5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.get_running_loop().shutdown_default_executor()  # as at the end of asyncio.run
    assert time.monotonic() - start < 20
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


async def test_the_gallery_looks_at_videos_in_the_object_store_and_survives_its_process() -> None:
    """An evaluation that ends a run of hours because a process without any state died."""
    gallery = RayGallery()
    await gallery.start()
    black, white = (np.full((2, 3, 16, 16), value, np.uint8) for value in (0, 255))
    videos = [ray.put(black), ray.put(white)]
    assert await gallery.diversity(videos) == pytest.approx(1.0)
    pid = await gallery._worker.__ray_call__.remote(lambda _: os.getpid())
    os.kill(pid, 9)
    assert await gallery.diversity(videos) == pytest.approx(1.0)
    assert (await gallery.encode(videos[1], fps=8, comment="seed 1"))[4:8] == b"ftyp"
    assert await gallery._worker.__ray_call__.remote(lambda _: os.getpid()) != pid


async def test_the_gallery_tells_lost_videos_from_faults_of_the_program() -> None:
    """A traceback out of Ray's insides for a node that died."""
    maker = new_maker()
    lost = maker.late.remote()
    ray.kill(maker)
    gallery = RayGallery()
    await gallery.start()
    with pytest.raises(PayloadsLost, match="ActorDiedError") as caught:
        await gallery.diversity([lost, lost])
    assert type(caught.value) is PayloadsLost
    with pytest.raises(RayTaskError, match="not enough values to unpack"):
        await gallery.encode(ray.put(np.zeros(3)), fps=8, comment="no video")


def test_step_metrics_have_names_that_prometheus_takes() -> None:
    """Prometheus drops names with slashes without a word."""
    metrics = RayMetrics("run-1")
    metrics.log({"reward/total": 0.5, "a new one": 1.0}, step=1)
    metrics.log({"reward/total": 0.75}, step=2)
    metrics.close()
    assert {gauge.info["name"] for gauge in metrics._gauges.values()} == {
        "astrolabe_reward_total",
        "astrolabe_a_new_one",
    }
    assert {gauge.info["tag_keys"] for gauge in metrics._gauges.values()} == {("run",)}


async def until(condition) -> None:
    for _ in range(400):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within 20 s")
