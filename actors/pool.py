"""Rollout actors on a Ray cluster behind one door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.fleet import Fleet
from actors.rollout_actor import RolloutActor, RolloutActorSpec, with_payloads
from actors.scaling import ReplacementBudget, ScalingPolicy
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import InfraFailure, WeightMismatch
from astrolabe_ray.runtime.hiring import HiredActor, Hiring
from astrolabe_ray.types import PublishedPolicy, Rollout, RolloutRequest, WeightAck

BROKEN = (InfraFailure, WeightMismatch)
"""What makes a member to be replaced, and its work be done elsewhere."""
MAX_REPLACEMENTS_PER_HOUR = 30

T = TypeVar("T")


class RayRolloutPool:
    """Fulfils `roles.RolloutPool` with one Ray actor per member, between min_actors and max_actors.

    This process awaits records of about a kilobyte. Payloads are returns of the actor's task, so
    this process owns them: they survive their maker, and nobody here reads them. An actor on which
    anything failed is killed and replaced; the work goes elsewhere with the same seeds.
    """

    def __init__(self, config: RunConfig) -> None:
        rollout, cluster = config.rollout, config.cluster
        self._max_attempts = rollout.max_attempts
        self._hiring = Hiring(
            RolloutActor,
            RolloutActorSpec.of(config),
            "rollout",
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            placement_timeout_s=cluster.placement_timeout_s,
            answer_timeout_s=rollout.request_timeout_s,
            owner=config.name,
            timeout_option="rollout.request_timeout_s",
        )
        self._newest: PublishedPolicy | None = None
        self._acks: dict[str, WeightAck] = {}  # member -> its last proof of weights
        self._fleet: Fleet[HiredActor] = Fleet(
            self._hiring.hire,
            self._hiring.dismiss,
            self._hiring.settle,
            scaling=ScalingPolicy(rollout.min_actors, rollout.max_actors),
            budget=ReplacementBudget(MAX_REPLACEMENTS_PER_HOUR, "rollout actors"),
        )

    @property
    def capacity(self) -> int:
        return len(self._fleet.members)

    async def start(self) -> None:
        """Raises ConfigError when the cluster has no room or the model's files do not fit."""
        await self._fleet.start()

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        num_returns = 1 + request.num_payloads

        async def work(member: HiredActor) -> list[Rollout]:
            refs = member.actor.generate.options(num_returns=num_returns).remote(request)
            records = await self._hiring.answer(refs[0], f"{member} generating {request.group_id}")
            return with_payloads(records, refs[1:], len(request.views))

        return await self._with_member(work, pinned)

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self._newest = policy

    async def sync(self) -> list[WeightAck]:
        """Every idle actor, once; when there is none, or none of them can, the next one that is free."""

        async def work(member: HiredActor) -> WeightAck:
            return self._acks[member.name]  # it has just been brought up to date

        async def proof(member: HiredActor) -> WeightAck | None:
            try:
                await self._update(member, self._newest_policy())
            except BROKEN as failure:
                self._fleet.discard(member, failure)
                return None
            return await work(member)

        async with self._fleet.borrow_idle() as members:
            proofs = await asyncio.gather(*map(proof, members))
        return [ack for ack in proofs if ack is not None] or [await self._with_member(work)]

    async def probe(self, seed: int) -> list[float]:
        async def work(member: HiredActor) -> list[float]:
            return await self._hiring.answer(member.actor.probe.remote(seed), f"{member} answering a probe")

        return await self._with_member(work)

    async def stop(self) -> None:
        await self._fleet.stop()

    async def _with_member(
        self, work: Callable[[HiredActor], Awaitable[T]], pinned: PublishedPolicy | None = None
    ) -> T:
        """`work` on a free member that holds `pinned` or the newest policy, tried again elsewhere when that
        fails; for a pinned one others go first.

        Raises InfraFailure or WeightMismatch after rollout.max_attempts tries.
        """

        async def with_policy(member: HiredActor) -> T:
            await self._update(member, pinned or self._newest_policy())
            return await work(member)

        return await self._fleet.on_member(
            with_policy, max_attempts=self._max_attempts, broken=BROKEN, is_patient=pinned is not None
        )

    def _newest_policy(self) -> PublishedPolicy:
        assert self._newest is not None, "set_policy comes first"
        return self._newest

    async def _update(self, member: HiredActor, policy: PublishedPolicy) -> None:
        """Bring a member to `policy`. Raises WeightMismatch when it acknowledges anything else."""
        manifest = policy.manifest
        wanted = (manifest.version, manifest.checksum)
        held = self._acks.pop(member.name, None)
        if held is None or (held.version, held.checksum) != wanted:
            ref = member.actor.load_policy.remote(manifest, policy.buffer)
            held = await self._hiring.answer(ref, f"{member} loading policy {manifest.version}")
        if (held.version, held.checksum) != wanted:
            raise WeightMismatch(
                f"{member} acknowledged policy {held.version} {held.checksum[:12]}, wanted was "
                f"{manifest.version} {manifest.checksum[:12]}."
            )
        self._acks[member.name] = held
