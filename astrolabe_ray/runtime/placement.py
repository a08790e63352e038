"""Room for processes, reserved as a whole and with a deadline."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from astrolabe_ray.errors import ConfigError

SMALLEST_CPU = 0.001
"""A bundle must ask for something, also when its process is configured to reserve nothing."""


def bundle(num_cpus: float, num_gpus: float) -> dict[str, float]:
    """Resources of one process. Example: `bundle(1, 0) == {"CPU": 1}`."""
    wanted = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount > 0}
    return wanted or {"CPU": SMALLEST_CPU}


async def reserve(
    bundles: Sequence[Mapping[str, float]], *, name: str, timeout_s: float, strategy: str = "PACK"
) -> PlacementGroup:
    """All `bundles` or nothing. While it waits, an autoscaling cluster adds nodes.

    Ray shows `name` with something random behind it: it refuses a name that another run has taken.
    Raises ConfigError, with what is free, when there is no room after `timeout_s`.
    """
    unique_name = f"{name}-{uuid.uuid4().hex[:8]}"
    group = placement_group([dict(wanted) for wanted in bundles], strategy=strategy, name=unique_name)
    try:
        has_room = await asyncio.to_thread(group.wait, timeout_s)
    except asyncio.CancelledError:
        release(group)
        raise
    if has_room:
        return group
    release(group)
    free = {resource: ray.available_resources().get(resource, 0.0) for resource in ("CPU", "GPU")}
    raise ConfigError(
        f"no room for {name} after {timeout_s:g} s: it needs {len(bundles)} x {dict(bundles[0])}, all nodes "
        f"together have {free} free. Ask for fewer or smaller processes, stop what else runs on the "
        "cluster, add nodes, or raise cluster.placement_timeout_s."
    )


def release(group: PlacementGroup) -> None:
    """Give the room back; processes inside it are ended."""
    remove_placement_group(group)
