"""What a running server does under a steady load of drawn videos."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import ray

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.server_status import BenchResult
from astrolabe_ray.types import PolicyVersion, Rollout
from reward_servers.app import ServerSpec
from reward_servers.deploy import handle_of, reports_of, spec_of
from reward_servers.known_video import PROMPT, views_of
from reward_servers.pool import ServeRewardPool
from reward_servers.scorers import card_of_scorer


def bench(name: str, *, seconds: float, in_flight: int, size: tuple[int, int, int]) -> BenchResult:
    """Ask the server `name` for `seconds`, with `in_flight` requests of one video each at any time.

    The videos have `size` frames, height, width. Raises InfraFailure when no replica answers. Batches of
    other clients count among the batch sizes.
    """
    spec = spec_of(name)
    before = _batch_sizes(name)
    waits, took_s = asyncio.run(_load(name, spec, seconds=seconds, in_flight=in_flight, size=size))
    reports = reports_of(name)
    return BenchResult(
        num_videos=len(waits),
        seconds=took_s,
        p50_s=float(np.quantile(waits, 0.5)),
        p99_s=float(np.quantile(waits, 0.99)),
        batch_sizes=tuple(sorted((_batch_sizes(name) - before).items())),
        num_replicas=len(reports),
    )


async def _load(
    name: str, spec: ServerSpec, *, seconds: float, in_flight: int, size: tuple[int, int, int]
) -> tuple[Sequence[float], float]:
    """Seconds that each answer took, and all together."""
    reward = RewardConfig(key=_key_of(spec), max_batch_size=spec.max_batch_size, max_in_flight=in_flight)
    pool = ServeRewardPool([reward], client="bench", connect=lambda *_: [handle_of(name)])
    await pool.start()
    views = views_of(card_of_scorer(spec.scorer), size)
    video = ray.put(views[pool.views[0]])
    rollout = Rollout("bench", 0, PROMPT, 0, PolicyVersion(0), "bench", None, (video,))
    waits: list[float] = []
    began = time.monotonic()

    async def one_after_another() -> None:
        while (asked := time.monotonic()) < began + seconds:
            await pool.score([rollout])
            waits.append(time.monotonic() - asked)

    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    took_s = time.monotonic() - began
    await pool.stop()
    return waits, took_s


def _key_of(spec: ServerSpec) -> str:
    """A reward key that this server answers."""
    card = card_of_scorer(spec.scorer)
    inner = next(iter(card.keys))
    return inner if spec.scorer in BY_NAME else f"{spec.scorer}/{inner}"


def _batch_sizes(name: str) -> Counter[int]:
    """Of all replicas since they started."""
    return sum((Counter(report.batch_sizes) for report in reports_of(name)), Counter())
