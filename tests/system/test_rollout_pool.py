"""Rollout actors as real Ray actors on two nodes, against the pool without Ray.

One cluster and one pool serve all tests, because an actor takes seconds to load its libraries; every
test leaves the pool at work.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import ray
import torch
from ray.cluster_utils import Cluster
from ray.util import list_named_actors, placement_group_table

from actors.local_pool import LocalRolloutPool
from actors.pool import RayRolloutPool
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import PayloadsLost, WeightMismatch
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import FrameSpec, PolicyVersion, PublishedPolicy, Rollout, RolloutRequest
from tests.tiny_model import write_tiny_model
from tests.tiny_policy import published, tiny_run

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]

VIEWS = (FrameSpec(), FrameSpec(height=128, width=64))
"""The second one has 319 kB and lies in the object store of its node; Ray sends small values along."""
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
"""Room for a single actor, so that two actors are on two nodes."""
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
"""Notice after 3 s, not after Ray's 15 s, that a node refuses connections."""
PATIENCE_S = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order here and in the actors
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": HEALTH})
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    root = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return tiny_run(root, min_actors=2, max_actors=2, max_attempts=2, placement_timeout_s=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(cluster: Cluster, config: RunConfig) -> AsyncIterator[RayRolloutPool]:
    pool = RayRolloutPool(config)
    try:
        await pool.start()
        await pool.set_policy(stored(policy(config, 1)))
        yield pool
    finally:
        await pool.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def oracle(config: RunConfig) -> AsyncIterator[LocalRolloutPool]:
    """The same actor without Ray."""
    local = LocalRolloutPool(config)
    await local.start()
    yield local
    await local.stop()


def policy(config: RunConfig, step: int) -> PublishedPolicy:
    return published(Path(config.model.path), step)


def stored(policy: PublishedPolicy) -> PublishedPolicy:
    """As a learner publishes it: the buffer in the object store."""
    return PublishedPolicy(policy.manifest, ray.put(policy.buffer))


def request(number: int, *, num_seeds: int = 2, views: tuple[FrameSpec, ...] = VIEWS) -> RolloutRequest:
    seeds = tuple(1000 * number + i for i in range(num_seeds))
    prompt = ("a red circle", "a blue square")[number % 2]
    return RolloutRequest(f"train-0-{number}", prompt, seeds, tuple(range(num_seeds)), views)


def long_request(number: int) -> RolloutRequest:
    """Some seconds of work, so that there is a middle in which to end it."""
    return request(number, num_seeds=300, views=VIEWS[:1])


def assert_bit_identical(got: list[Rollout], expected: list[Rollout]) -> None:
    store = RayBlobStore()
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        for name in ("group_id", "index", "prompt", "seed", "policy_version"):
            assert getattr(one, name) == getattr(other, name)
        for blob, array in zip((one.latents, *one.views), (other.latents, *other.views), strict=True):
            fetched = store.get(blob)
            assert isinstance(fetched, np.ndarray)
            assert fetched.dtype == array.dtype
            np.testing.assert_array_equal(fetched, array)


async def where(pool: RayRolloutPool) -> dict[str, tuple[int, str]]:
    """Process id and node id of every actor."""

    def tell(_: Any) -> tuple[int, str]:
        return os.getpid(), ray.get_runtime_context().get_node_id()

    asked = {m.name: m.actor.__ray_call__.remote(tell) for m in pool._fleet.members}
    return {name: await asyncio.wait_for(as_future(ref), PATIENCE_S) for name, ref in asked.items()}


async def as_future(ref: Any) -> Any:
    return await ref


async def eventually(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.05)


async def at_full_strength(pool: RayRolloutPool) -> None:
    await eventually(lambda: pool.capacity == pool._fleet.num_idle == 2, "two idle actors")


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_two_nodes_make_the_videos_of_one_process_bit_by_bit(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """A run that depends on where a video was made can't be repeated, and a redone group is another one."""
    await at_full_strength(pool)
    requests = [request(number) for number in range(6)]
    makers: set[str] = set()
    for step in (1, 2):
        newest = policy(config, step)
        await pool.set_policy(stored(newest))
        await oracle.set_policy(newest)
        acks = await pool.sync()
        assert {(ack.version, ack.checksum, ack.num_modules) for ack in acks} == {
            (PolicyVersion(step=step), newest.manifest.checksum, 20)
        }
        made = await asyncio.gather(*(pool.generate(asked) for asked in requests))
        for asked, got in zip(requests, made, strict=True):
            assert_bit_identical(got, await oracle.generate(asked))
            makers |= {rollout.actor for rollout in got}
        assert await pool.probe(3) == await oracle.probe(3)
        await at_full_strength(pool)
        proven = [ack.actor for ack in await pool.sync()]  # at once, since both hold it already
        assert sorted(proven) == sorted(member.name for member in pool._fleet.members)
    assert makers == {member.name for member in pool._fleet.members}
    nodes = {node for _, node in (await where(pool)).values()}
    assert len(nodes) == 2


async def test_a_pinned_request_gets_its_policy_whatever_the_newest_is(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """An evaluation beside training would be of a mixture of policies."""
    await at_full_strength(pool)
    newest, pinned = policy(config, 5), policy(config, 3)
    stored_pinned = stored(pinned)
    await pool.set_policy(stored(newest))
    requests = [request(number) for number in range(8)]
    pins = [stored_pinned if number % 2 else None for number in range(8)]
    made = await asyncio.gather(
        *(pool.generate(asked, pinned=pin) for asked, pin in zip(requests, pins, strict=True))
    )
    for asked, pin, got in zip(requests, pins, made, strict=True):
        await oracle.set_policy(pinned if pin else newest)
        assert_bit_identical(got, await oracle.generate(asked))
        assert {rollout.policy_version.step for rollout in got} == {3 if pin else 5}


async def test_an_actor_killed_in_the_middle_of_a_video_costs_nothing_but_time(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """A group with a video missing, or one made with other seeds."""
    await at_full_strength(pool)
    newest = policy(config, 3)
    await pool.set_policy(stored(newest))
    await oracle.set_policy(newest)
    await pool.sync()
    places = await where(pool)
    seconds = {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, (pid, _) in places.items()}
    asked = long_request(7)
    in_progress = asyncio.ensure_future(pool.generate(asked))

    def at_work() -> list[str]:
        return [
            name
            for name, (pid, _) in places.items()
            if sum(psutil.Process(pid).cpu_times()[:2]) > seconds[name] + 0.2
        ]

    await eventually(lambda: bool(at_work()), "an actor at work")
    (victim,) = at_work()
    assert not in_progress.done()
    os.kill(places[victim][0], signal.SIGKILL)
    got = await asyncio.wait_for(in_progress, PATIENCE_S)
    assert {rollout.actor for rollout in got}.isdisjoint({victim})
    assert_bit_identical(got, await oracle.generate(asked))
    await at_full_strength(pool)
    assert victim not in {member.name for member in pool._fleet.members}


@pytest.mark.slow
async def test_an_actor_that_hangs_is_ended_and_its_work_redone(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that no longer listens, for example in a kernel that never ends, keeps its GPU for ever."""
    await at_full_strength(pool)
    newest = policy(config, 4)
    await pool.set_policy(stored(newest))
    await oracle.set_policy(newest)
    await pool.sync()
    places = await where(pool)
    next_one = pool._fleet._idle[-1].name
    os.kill(places[next_one][0], signal.SIGSTOP)
    impatient = replace(pool._hiring, answer_timeout_s=2)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_hiring", impatient)
        in_progress = asyncio.ensure_future(pool.generate(request(8)))
        await eventually(lambda: pool.capacity == 1, "the pool gives the hanging actor up")
    assert_bit_identical(await asyncio.wait_for(in_progress, PATIENCE_S), await oracle.generate(request(8)))
    await eventually(lambda: has_ended(places[next_one][0]), "the hanging process ends")
    await at_full_strength(pool)


@pytest.mark.slow
async def test_an_actor_whose_gpu_fails_is_replaced_and_its_work_redone(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """One GPU of many with an ECC error ends the run, or serves on with a context that is broken."""

    def break_gpu(actor: Any) -> None:
        def sample(_: Any) -> Any:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

        actor._sample = sample

    await at_full_strength(pool)
    broken = pool._fleet._idle[-1]
    await as_future(broken.actor.__ray_call__.remote(break_gpu))
    got = await asyncio.wait_for(pool.generate(request(8)), PATIENCE_S)
    assert_bit_identical(got, await oracle.generate(request(8)))
    assert broken not in pool._fleet.members
    await at_full_strength(pool)


async def test_a_request_that_is_given_up_holds_no_other_up(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """The next request queues behind it in its actor and exceeds its own time limit."""
    await at_full_strength(pool)
    await pool.sync()
    given_up = asyncio.ensure_future(pool.generate(long_request(3)))
    await eventually(lambda: pool._fleet.num_idle == 1, "an actor at work")
    await asyncio.sleep(0.2)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await asyncio.gather(*(pool.generate(request(number, num_seeds=1)) for number in range(3)))
    assert pool._fleet.num_idle == 1, "three requests are done, all by the other actor"
    await at_full_strength(pool)


async def test_a_tampered_policy_is_refused_and_the_pool_goes_on_with_the_next(
    pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """Damaged weights make plausible videos."""
    await at_full_strength(pool)
    good = policy(config, 5)
    damaged = good.buffer.copy()
    damaged[-100] ^= 4
    await pool.set_policy(stored(PublishedPolicy(good.manifest, damaged)))
    with pytest.raises(WeightMismatch, match="damaged on the way"):
        await asyncio.wait_for(pool.generate(request(9)), PATIENCE_S)
    await pool.set_policy(stored(good))
    await oracle.set_policy(good)
    got = await asyncio.wait_for(pool.generate(request(9)), PATIENCE_S)
    assert_bit_identical(got, await oracle.generate(request(9)))


@pytest.mark.slow
async def test_a_lost_node_is_replaced_as_soon_as_there_is_another(
    cluster: Cluster, pool: RayRolloutPool, oracle: LocalRolloutPool, config: RunConfig
) -> None:
    """The run ends with its first node, or goes on with half of its actors for ever.

    Large payloads on the node are lost with it, and whoever reads them must be told, not hang.
    """
    await at_full_strength(pool)
    newest = policy(config, 6)
    await pool.set_policy(stored(newest))
    await oracle.set_policy(newest)
    await pool.sync()
    (lost_node,) = cluster.worker_nodes
    lost_actor = {node: name for name, (_, node) in (await where(pool)).items()}[lost_node.node_id]
    finished = await asyncio.gather(*(pool.generate(request(number)) for number in range(4)))
    lost = next(rollout for group in finished for rollout in group if rollout.actor == lost_actor)
    long = [long_request(number) for number in range(2)]
    in_progress = asyncio.gather(*(pool.generate(asked) for asked in long))
    await eventually(lambda: pool._fleet.num_idle == 0, "both actors at work")
    cluster.remove_node(lost_node, allow_graceful=False)
    for asked, got in zip(long, await asyncio.wait_for(in_progress, PATIENCE_S), strict=True):
        assert lost_actor not in {rollout.actor for rollout in got}
        assert_bit_identical(got, await oracle.generate(asked))
    with pytest.raises(PayloadsLost, match="reading a payload within 30 s: "):
        await asyncio.to_thread(RayBlobStore(timeout_s=30).get, lost.views[1])
    cluster.add_node(**NODE)
    await at_full_strength(pool)
    (new_node,) = cluster.worker_nodes
    assert new_node.node_id in {node for _, node in (await where(pool)).values()}
    got = await pool.generate(request(5))
    assert_bit_identical(got, await oracle.generate(request(5)))


async def test_stopping_leaves_neither_actors_nor_reserved_room_behind(
    pool: RayRolloutPool, config: RunConfig
) -> None:
    """The next run on this cluster finds no room, and nobody knows why. The last test: it ends the pool."""
    await at_full_strength(pool)
    pids = [pid for pid, _ in (await where(pool)).values()]
    await pool.stop()
    await pool.stop()  # as after a failure in the middle of stopping
    assert pool.capacity == 0
    await eventually(lambda: all(map(has_ended, pids)), "the processes end")
    states = {group["state"] for group in placement_group_table().values()}
    assert states == {"REMOVED"}
    assert list_named_actors(all_namespaces=True) == []
    await eventually(lambda: ray.available_resources().get("CPU") == 2, "all CPUs are free")
