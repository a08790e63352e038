"""A run as reward servers see it: a process of its own with a pool, asking for numbered videos."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.types import PolicyVersion, Rollout
from reward_servers.pool import ServeRewardPool
from tests.waiting_scorer import numbered


class RewardClient:
    """Used as a Ray actor, so that clients do not share an event loop or an interpreter."""

    def __init__(self, reward: RewardConfig, name: str, idle_timeout_s: float | None = None) -> None:
        self._pool = ServeRewardPool([reward], client=name, idle_timeout_s=idle_timeout_s)
        self._key = reward.key

    async def start(self) -> float:
        """Seconds until the first score was there."""
        began = time.monotonic()
        await self._pool.start()
        await self.ask([0], 1)
        return time.monotonic() - began

    async def ask(self, numbers: Sequence[int], in_flight: int) -> tuple[list[float], list[float]]:
        """Scores of the videos with these numbers, in this order, and the seconds that each took."""
        places = asyncio.Semaphore(in_flight)

        async def one(number: int) -> tuple[float, float]:
            async with places:
                began = time.monotonic()
                views = (ray.put(numbered(number)),)
                rollout = Rollout("g", number, "a caption", 0, PolicyVersion(0), "a", None, views)
                (scores,) = await self._pool.score([rollout])
                return scores.values[self._key], time.monotonic() - began

        answers = await asyncio.gather(*map(one, numbers))
        return [value for value, _ in answers], [seconds for _, seconds in answers]

    async def stop(self) -> None:
        await self._pool.stop()


def hire_client(reward: RewardConfig, name: str, idle_timeout_s: float | None = None) -> Any:
    """A client in a process of its own, whose handles tell Serve every second how much they wait for."""
    options: Any = ray.remote(num_cpus=0)(RewardClient).options(
        runtime_env={"env_vars": {"RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1"}},
        max_concurrency=100,
    )
    return options.remote(reward, name, idle_timeout_s)
