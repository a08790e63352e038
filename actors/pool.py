"""Rollout actors on a Ray cluster behind one door; the only file of this role that calls `.remote`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.fleet import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Fleet
from actors.rollout_actor import RolloutActor, RolloutActorSpec, with_payloads
from actors.scaling import ReplacementBudget, ScalingPolicy
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import InfraFailure, WeightMismatch
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.placement import bundle, release, reserve
from astrolabe_ray.types import PublishedPolicy, Rollout, RolloutRequest, WeightAck

MAX_REPLACEMENTS_PER_HOUR = 30

T = TypeVar("T")


@dataclass(eq=False)
class _Member:
    """One Ray actor, the room reserved for it, and its last proof of weights."""

    name: str
    actor: Any
    placement: PlacementGroup
    ack: WeightAck | None = None

    def __str__(self) -> str:
        return self.name


class RayRolloutPool:
    """Fulfils `roles.RolloutPool` with one Ray actor per member, between min_actors and max_actors.

    This process awaits records of about a kilobyte. Payloads are returns of the actor's task, so
    this process owns them: they survive their maker, and nobody here reads them. An actor on which
    anything failed is killed and replaced; the work goes elsewhere with the same seeds.
    """

    def __init__(self, config: RunConfig) -> None:
        self._rollout = config.rollout
        self._placement_timeout_s = config.cluster.placement_timeout_s
        self._spec = RolloutActorSpec.of(config)
        self._namespace = f"{config.name}-{uuid.uuid4().hex[:8]}"  # two runs of one name may overlap
        self._newest: PublishedPolicy | None = None
        self._fleet: Fleet[_Member] = Fleet(
            self._hire,
            self._dismiss,
            scaling=ScalingPolicy(config.rollout.min_actors, config.rollout.max_actors),
            budget=ReplacementBudget(MAX_REPLACEMENTS_PER_HOUR),
        )

    @property
    def capacity(self) -> int:
        return len(self._fleet.members)

    async def start(self) -> None:
        """Raises ConfigError when the cluster has no room or the model's files do not fit."""
        await self._fleet.start()

    async def generate(self, request: RolloutRequest) -> list[Rollout]:
        num_returns = 1 + len(request.seeds) * (len(request.views) + 1)

        async def work(member: _Member) -> list[Rollout]:
            refs = member.actor.generate.options(num_returns=num_returns).remote(request)
            records = await self._result(refs[0], f"{member} generating {request.group_id}")
            return with_payloads(records, refs[1:], len(request.views))

        return await self._with_member(work)

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self._newest = policy

    async def sync(self) -> list[WeightAck]:
        """Every idle actor, once; when there is none, or none of them can, the next one that is free."""

        async def work(member: _Member) -> WeightAck:
            assert member.ack is not None  # it has just been brought up to date
            return member.ack

        async def proof(member: _Member) -> WeightAck | None:
            try:
                await self._update(member)
            except (InfraFailure, WeightMismatch) as failure:
                self._fleet.discard(member, failure)
                return None
            return await work(member)

        async with self._fleet.borrow_idle() as members:
            proofs = await asyncio.gather(*map(proof, members))
        return [ack for ack in proofs if ack is not None] or [await self._with_member(work)]

    async def probe(self, seed: int) -> list[float]:
        async def work(member: _Member) -> list[float]:
            return await self._result(member.actor.probe.remote(seed), f"{member} answering a probe")

        return await self._with_member(work)

    async def stop(self) -> None:
        await self._fleet.stop()

    async def _with_member(self, work: Callable[[_Member], Awaitable[T]]) -> T:
        """`work` on a free member that holds the newest policy, tried again elsewhere when that fails.

        Raises InfraFailure or WeightMismatch after rollout.max_attempts tries.
        """
        backoff_s, last_attempt = FIRST_BACKOFF_S, self._rollout.max_attempts
        for attempt in range(1, last_attempt + 1):
            async with self._fleet.borrow() as member:
                try:
                    await self._update(member)
                    return await work(member)
                except (InfraFailure, WeightMismatch) as failure:
                    self._fleet.discard(member, failure)
                    if attempt == last_attempt:
                        raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
        raise AssertionError("rollout.max_attempts is at least 1")

    async def _update(self, member: _Member) -> None:
        """Bring a member to the newest policy. Raises WeightMismatch when it acknowledges anything else."""
        assert self._newest is not None, "set_policy comes first"
        manifest = self._newest.manifest
        wanted = (manifest.version, manifest.checksum)
        if member.ack is not None and (member.ack.version, member.ack.checksum) == wanted:
            return
        member.ack = None
        ref = member.actor.load_policy.remote(manifest, self._newest.buffer)
        ack: WeightAck = await self._result(ref, f"{member} loading policy {manifest.version}")
        if (ack.version, ack.checksum) != wanted:
            raise WeightMismatch(
                f"{member} acknowledged policy {ack.version} {ack.checksum[:12]}, published was "
                f"{manifest.version} {manifest.checksum[:12]}."
            )
        member.ack = ack

    async def _hire(self, number: int) -> _Member:
        name, rollout = f"rollout-{number}", self._rollout
        room = [bundle(rollout.num_cpus, rollout.num_gpus)]
        placement = await reserve(room, name=name, timeout_s=self._placement_timeout_s)
        remote = ray.remote(RolloutActor).options(
            name=name,
            namespace=self._namespace,
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            max_restarts=0,  # a restarted process would have no weights; the fleet replaces it
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, 0),
        )
        member = _Member(name, remote.remote(self._spec, name), placement)
        is_ready = False
        try:
            await self._result(member.actor.setup.remote(), f"{name} loading its models")
            is_ready = True
        finally:
            if not is_ready:
                self._dismiss(member)
        return member

    def _dismiss(self, member: _Member) -> None:
        ray.kill(member.actor)
        release(member.placement)

    async def _result(self, ref: Any, doing: str) -> Any:
        """The value of a task. Raises what `as_failure` makes of an error or a timeout."""
        timeout_s = self._rollout.request_timeout_s
        try:
            return await asyncio.wait_for(_awaited(ref), timeout_s)
        except (RayError, asyncio.TimeoutError) as error:
            raise as_failure(error, f"{doing} (rollout.request_timeout_s={timeout_s:g})") from error


async def _awaited(ref: Any) -> Any:
    return await ref
