"""A run with its three roles in one process and without Ray, for experiments with the algorithm.

Such a run depends on its config alone: not on the speed of the machine, nor on what else it does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.report.gallery import LocalGallery
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.roles import RunObserver
from astrolabe_ray.run import Roles, run_training
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import Alarm, Evaluation, Span
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from reward_servers.local_pool import LocalRewardPool

T = TypeVar("T")


class Watcher:
    """A RunObserver that keeps the metrics of each step and the evaluations."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[Evaluation] = []

    def phase(self, name: str, total: int) -> None: ...

    def advance(self, count: int = 1) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(dict(metrics))

    def evaluated(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def span(self, span: Span) -> None: ...

    def note(self, text: str) -> None: ...

    def alarmed(self, alarm: Alarm) -> None: ...


def in_own_process(work: Callable[[RunConfig], T], config: RunConfig) -> T:
    """Call `work` in a fresh process, so that its memory and its random numbers are nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (config,))


def local_roles(config: RunConfig) -> Roles:
    """One rollout actor, one rank, and scorers that answer in turn."""
    blobs = LocalBlobStore()
    return Roles(
        rollouts=LocalRolloutPool(config),
        rewards=LocalRewardPool(config.rewards),
        learner=LocalLearner(LearnerSpec.of(config), blobs),
        gallery=LocalGallery(blobs),
    )


def carry_out(config: RunConfig, roles: Roles, observer: RunObserver) -> None:
    """Train and evaluate on one thread per role; what it writes is thrown away."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir.create(folder, "tiny", config.name)

        async def run() -> None:
            await run_training(config, roles, run_dir, observer, asyncio.Event())

        asyncio.run(run())
