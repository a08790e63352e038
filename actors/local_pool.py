"""One rollout actor inside this process, without Ray: blobs are arrays. The oracle of the Ray pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from actors.rollout_actor import RolloutActor, RolloutActorSpec, with_payloads
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.types import PublishedPolicy, Rollout, RolloutRequest, WeightAck

T = TypeVar("T")


class LocalRolloutPool:
    """Fulfils `roles.RolloutPool`. All work happens on one thread of its own, in order of arrival."""

    def __init__(self, config: RunConfig) -> None:
        spec = replace(RolloutActorSpec.of(config), device="cpu", num_threads=None)
        self._actor = RolloutActor(spec, "rollout-0")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._newest: PublishedPolicy | None = None
        self._ack: WeightAck | None = None  # of the policy that the actor holds

    @property
    def capacity(self) -> int:
        return 1

    async def start(self) -> None:
        await self._run(self._actor.setup)

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        def work() -> list[Rollout]:
            self._update(pinned)
            records, *blobs = self._actor.generate(request)
            return with_payloads(records, blobs, len(request.views))

        return await self._run(work)

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self._newest = policy

    async def sync(self) -> list[WeightAck]:
        return [await self._run(self._update)]

    async def probe(self, seed: int) -> list[float]:
        def work() -> list[float]:
            self._update()
            return self._actor.probe(seed)

        return await self._run(work)

    async def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _update(self, pinned: PublishedPolicy | None = None) -> WeightAck:
        """Bring the actor to `pinned` or the newest policy. Raises WeightMismatch."""
        policy = pinned or self._newest
        assert policy is not None, "set_policy comes first"
        manifest = policy.manifest
        held = self._ack
        if held is None or (held.version, held.checksum) != (manifest.version, manifest.checksum):
            held = self._ack = self._actor.load_policy(manifest, policy.buffer)
        return held

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))
