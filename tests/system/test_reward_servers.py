"""Reward servers on real Ray Serve: scored by reference, shared, found again, replaced after a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.data.sprites.captions import heldout_captions
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.types import PolicyVersion, Rollout, Scores
from reward_servers import deploy
from reward_servers.app import ServerSpec
from reward_servers.batch_scoring import ScoreRequest
from reward_servers.deploy import down, handle_of, reports_of, status
from reward_servers.local_pool import LocalRewardPool
from reward_servers.pool import ServeRewardPool
from reward_servers.readiness import Patience
from tests.reward_replicas import replica_pids

pytestmark = pytest.mark.system
REWARDS = tuple(RewardConfig(key=key, num_cpus=0.1) for key in ("tiny_clip", "motion_quality"))
NAMES = {ServerSpec.of(reward).app_name for reward in REWARDS}
OUTSIDE = """
import numpy as np

from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from astrolabe_ray.types import FrameSpec

GRAY = FrameSpec(num_frames=2, grayscale=True)


class Levels:
    card = ScorerCard(
        "levels",
        {
            "red": Reading(FrameSpec(num_frames=2)),
            "blue": Reading(FrameSpec(num_frames=2)),
            "luma": Reading(GRAY, "red"),
        },
        licence="Apache-2.0",
    )

    def __init__(self, setup):
        pass

    def score(self, videos, prompts):
        means = videos.mean(axis=(1, 3, 4), dtype=np.float32)
        return {"red": means[:, 0], "blue": means[:, 2]}
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A scorer in a folder that this process and all of Ray's can import from."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "levels_scorer.py").write_text(OUTSIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.fixture(scope="module")
def cluster(outside: None) -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    captions = heldout_captions()[:5]
    views = LocalRewardPool(REWARDS).views
    return [
        Rollout("g", i, str(c), i, PolicyVersion(0), "a", None, tuple(derive_view(clip, v) for v in views))
        for i, (c, clip) in enumerate(zip(captions, render_clips(captions, seed=9), strict=True))
    ]


def statuses(names: set[str]) -> set[str]:
    return {server.status for server in status() if server.name in names}


def in_store(rollouts: list[Rollout]) -> list[Rollout]:
    return [replace(r, views=tuple(ray.put(view) for view in r.views)) for r in rollouts]


def scored(rollouts: list[Rollout]) -> list[Scores]:
    """By a pool of its own, as another run would have it."""

    async def run() -> list[Scores]:
        pool = ServeRewardPool(REWARDS)
        await pool.start()
        return await pool.score(in_store(rollouts))

    return asyncio.run(run())


def test_served_scores_equal_those_in_process(cluster: None, rollouts: list[Rollout]) -> None:
    """References, batching or threads must not change a score; float32 sums may differ in order."""
    local = asyncio.run(LocalRewardPool(REWARDS).score(rollouts))
    served = scored(rollouts)
    for here, there in zip(served, local, strict=True):
        assert here.values == pytest.approx(there.values, abs=2e-5)
        assert here.values.keys() == {"tiny_clip", "motion_quality"}


def test_the_next_run_finds_the_servers_running(cluster: None, rollouts: list[Rollout]) -> None:
    """Loading a large reward model again costs minutes."""
    before = replica_pids()
    scored(rollouts)
    assert len(before) == 2
    assert replica_pids() == before
    assert {(server.name, server.status, server.num_replicas) for server in status()} == {
        (name, "RUNNING", 1) for name in NAMES
    }


def test_a_video_that_cannot_be_scored_fails_alone(cluster: None, rollouts: list[Rollout]) -> None:
    """The error of one prompt must arrive as what it is, through Serve."""
    with pytest.raises(DataFailure, match="a cat"):
        scored([replace(rollouts[0], prompt="a cat")])
    assert len(scored(rollouts)) == 5


def test_keys_of_a_scorer_from_outside_come_from_one_server(cluster: None, rollouts: list[Rollout]) -> None:
    """A server for each key would load the model as often, and look at each video as often."""
    keys = [f"levels_scorer:Levels/{name}" for name in ("red", "blue", "luma")]
    rewards = [RewardConfig(key=key, num_cpus=0.1) for key in keys]
    red = np.zeros((4, 3, 8, 8), np.uint8)
    red[:, 0] = 200
    before = replica_pids()

    async def run() -> list[Scores]:
        pool = ServeRewardPool(rewards, keep_servers=False)
        await pool.start()
        assert len(replica_pids() - before) == 1
        views = tuple(ray.put(derive_view(red, view)) for view in pool.views)
        scores = await pool.score([replace(rollouts[0], views=views)])
        await pool.stop()
        return scores

    (scores,) = asyncio.run(run())
    assert scores.values == dict(zip(keys, (200.0, 0.0, 60.0), strict=True))  # 0.299 x 200


def test_a_killed_replica_is_replaced_and_the_request_repeated(
    cluster: None, rollouts: list[Rollout]
) -> None:
    """A crashed server would otherwise end every run that shares it."""
    expected = [score.values for score in scored(rollouts)]
    before = replica_pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for got, want in zip(scored(rollouts), expected, strict=True):
        assert got.values == pytest.approx(want, abs=2e-5)
    assert not before & replica_pids()


def test_a_group_larger_than_a_batch_is_scored_and_a_request_larger_than_one_refused(
    cluster: None, rollouts: list[Rollout]
) -> None:
    """A scorer would get more videos than its memory was measured with; a group would never be scored."""
    reward = REWARDS[0].model_copy(update={"max_batch_size": 2})
    name = ServerSpec.of(reward).app_name

    async def run() -> tuple[list[Scores], list[Scores]]:
        pool, local = ServeRewardPool([reward], keep_servers=False), LocalRewardPool([reward])
        view = LocalRewardPool(REWARDS).views.index(pool.views[0])
        group = [replace(r, views=(r.views[view],)) for r in rollouts[:4]]
        await pool.start()
        scores = await pool.score(in_store(group))
        (server,) = await asyncio.to_thread(reports_of, name)
        assert server.num_videos == 4 and max(server.batch_sizes) <= 2
        handle = handle_of(name)
        request = ScoreRequest("large", tuple(ray.put(r.views[0]) for r in group[:3]), ("a caption",) * 3)
        with pytest.raises(DataFailure, match=r"request large brings 3 videos; .* at most 2 together"):
            await handle.score.remote(request)
        await handle.shutdown_async()
        await pool.stop()
        return scores, await local.score(group)

    served, local = asyncio.run(run())
    assert [s.values for s in served] == [pytest.approx(s.values, abs=2e-5) for s in local]
    assert len({s.values["tiny_clip"] for s in served}) == 4


def test_a_server_that_is_starting_is_waited_for_and_one_without_room_is_taken_back(cluster: None) -> None:
    """Serve waits for ever, and what waits takes the room of others as soon as there is some."""
    starting = ServerSpec.of(RewardConfig(key="image_quality", num_cpus=0.1))
    serve.start(http_options=HTTPOptions(location=ProxyLocation.Disabled))
    deploy._deploy([starting])
    assert [s.status for s in status() if s.name == starting.app_name] == ["DEPLOYING"]
    deploy.ensure([starting], Patience(60, 60))
    assert [s.status for s in status() if s.name == starting.app_name] == ["RUNNING"]

    too_large = RewardConfig(key="image_quality", num_cpus=1000)
    pool = ServeRewardPool([too_large], patience=Patience(2, 1000))
    with pytest.raises(ConfigError, match=r"no room for reward-image_quality-.* after 2 s"):
        asyncio.run(pool.start())

    larger = too_large.model_copy(update={"num_cpus": 2000})

    async def stopped() -> None:
        start = asyncio.create_task(ServeRewardPool([larger], patience=Patience(1000, 1000)).start())
        await asyncio.sleep(2)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)

    began = time.monotonic()
    asyncio.run(stopped())
    print(f"stopped {time.monotonic() - began - 2:.1f} s after it was asked to")
    assert time.monotonic() - began < 60
    names = {ServerSpec.of(each).app_name for each in (too_large, larger)}
    deadline = time.monotonic() + 20  # Serve may look at an application while it is told to delete it
    while not (left := statuses(names)) <= {"DELETING"} and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left <= {"DELETING"}, "or gone"
    down([starting.app_name])


def test_servers_that_were_taken_down_are_gone(cluster: None, rollouts: list[Rollout]) -> None:
    """They hold GPUs that somebody else wants."""
    gone, kept = sorted(NAMES)
    down([gone])
    assert [server.name for server in status() if server.name in NAMES] == [kept]
    deadline = time.monotonic() + 20
    while len(replica_pids()) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(replica_pids()) == 1
