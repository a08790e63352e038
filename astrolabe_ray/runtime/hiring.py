"""Ray actors of a plain class, each in room of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.placement import bundle, release, reserve


@dataclass(eq=False)
class HiredActor:
    """One Ray actor and the room reserved for it."""

    name: str
    actor: Any
    placement: PlacementGroup

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Hiring:
    """How Ray actors of one class are made. The class takes (spec, name) and has a method `setup`."""

    role: type
    spec: object
    prefix: str  # of their names, before a number
    num_cpus: float
    num_gpus: float
    placement_timeout_s: float
    answer_timeout_s: float
    owner: str = "videos"  # begins their namespace; two runs of one name may overlap
    timeout_option: str = ""  # the option that answer_timeout_s comes from, for messages
    _namespace: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    async def hire(self, number: int) -> HiredActor:
        """An actor that has loaded its models. Raises ConfigError when there is no room, or what
        `as_failure` makes of an error.
        """
        name = f"{self.prefix}-{number}"
        room = [bundle(self.num_cpus, self.num_gpus)]
        placement = await reserve(room, name=name, timeout_s=self.placement_timeout_s)
        remote = ray.remote(self.role).options(
            name=name,
            namespace=f"{self.owner}-{self._namespace}",
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            max_restarts=0,  # a restarted process would have loaded nothing; the fleet replaces it
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, 0),
        )
        member = HiredActor(name, remote.remote(self.spec, name), placement)
        is_ready = False
        try:
            await self.answer(member.actor.setup.remote(), f"{name} loading its models")
            is_ready = True
        finally:
            if not is_ready:
                self.dismiss(member)
        return member

    def dismiss(self, member: HiredActor) -> None:
        ray.kill(member.actor)
        release(member.placement)

    async def settle(self, member: HiredActor) -> None:
        """Returns when everything that was asked of `member` is done: an actor answers in order.

        Raises what `answer` raises.
        """
        await self.answer(member.actor.__ray_ready__.remote(), f"{member} finishing what nobody waits for")

    async def answer(self, awaitable: Awaitable[Any], doing: str) -> Any:
        """The value of a reference, or the next one of a generator.

        Raises what `as_failure` makes of an error or a timeout.
        """
        try:
            return await asyncio.wait_for(_awaited(awaitable), self.answer_timeout_s)
        except (RayError, asyncio.TimeoutError) as error:
            limit = f" ({self.timeout_option}={self.answer_timeout_s:g})" if self.timeout_option else ""
            raise as_failure(error, doing + limit) from error


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
