"""A reward server learns that nobody waits for a request any more, through Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import ray
from ray import serve

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.types import PolicyVersion, Rollout
from reward_servers.app import ServerSpec
from reward_servers.deploy import reports_of
from reward_servers.pool import ServeRewardPool
from tests.waiting_scorer import KEY, numbered

pytestmark = pytest.mark.system
SLOW = RewardConfig(
    key=KEY, options="seconds=3", num_cpus=0.1, max_batch_size=1, max_attempts=1, request_timeout_s=1
)


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    serve.shutdown()
    ray.shutdown()


def asked(number: int) -> list[Rollout]:
    views = (ray.put(numbered(number)),)
    return [Rollout("g", number, "a caption", 0, PolicyVersion(0), "a", None, views)]


async def give_up(pool: ServeRewardPool) -> list[str]:
    """Why two requests that time out were given up; a third is cancelled by its own caller."""
    ends = await asyncio.gather(*(pool.score(asked(n)) for n in (1, 2)), return_exceptions=True)
    cancelled = asyncio.create_task(pool.score(asked(3)))
    await asyncio.sleep(0.3)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert all(isinstance(end, InfraFailure) for end in ends)
    return [str(end) for end in ends]


@pytest.mark.slow
def test_a_request_that_timed_out_is_no_longer_scored(cluster: None) -> None:
    """A replica that is behind would score what was given up, and what was sent again, and never catch up."""

    async def run() -> tuple[list[str], int, int]:
        pool = ServeRewardPool([SLOW])
        await pool.start()
        reasons = await give_up(pool)
        await asyncio.sleep(0.5)
        (report,) = await asyncio.to_thread(reports_of, ServerSpec.of(SLOW).app_name)
        await asyncio.sleep(6)
        (later,) = await asyncio.to_thread(reports_of, ServerSpec.of(SLOW).app_name)
        await pool.stop()
        return reasons, report.num_waiting, later.num_videos

    reasons, num_waiting, num_videos = asyncio.run(run())
    assert all("did not answer in 1 attempts: TimeoutError" in reason for reason in reasons)
    assert num_waiting == 0, "the queue is empty while the first video is still being scored"
    assert num_videos == 1
