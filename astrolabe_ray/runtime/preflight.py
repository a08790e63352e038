"""What can be checked before any process starts, so that a run fails in a second and not in minutes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

from astrolabe_ray.config.plan import Need
from astrolabe_ray.errors import ConfigError

PACKAGES = ("astrolabe_ray", "actors", "learner", "reward_servers")
GIB = 2**30
ROUNDING = 1e-6
"""Sums of fractional resources are not exact."""

OF_A_RUN = "Lower rollout.min_actors, learner.num_ranks or their num_cpus and num_gpus"


@dataclass(frozen=True)
class Room:
    """Resources of a cluster, all nodes together."""

    cpus: float
    gpus: float
    object_store_bytes: float


def require_one_checkout() -> Path:
    """The folder that all packages come from. Raises ConfigError for a mixed installation."""
    parents = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f"package '{package}' is not installed; run from the checkout or `pip install -e .` in it."
            )
        parents[package] = Path(spec.origin).resolve().parent.parent
    if len(set(parents.values())) > 1:
        listed = "\n".join(f"  {package:15} {parent}" for package, parent in parents.items())
        raise ConfigError(
            f"the packages of Astrolabe-Ray come from different folders:\n{listed}\n"
            "Uninstall all but one copy (`pip uninstall astrolabe-ray`), or unset PYTHONPATH."
        )
    return parents[PACKAGES[0]]


def cluster_room() -> tuple[Room, Room]:
    """Total and free resources of the connected cluster."""
    total, free = (_room(found) for found in (ray.cluster_resources(), ray.available_resources()))
    return total, free


def require_room(
    needs: Sequence[Need],
    object_store_bytes: float,
    total: Room,
    free: Room,
    *,
    way_out: str = OF_A_RUN,
) -> None:
    """Check that `needs` fit. Leave out of them what already runs (shared reward servers).

    Raises ConfigError with a table of wanted, total and free. Whether each single process fits its
    node is settled when it is placed.
    """
    wanted = Room(
        sum(need.count * need.num_cpus for need in needs),
        sum(need.count * need.num_gpus for need in needs),
        object_store_bytes,
    )
    rows = [
        ("CPU", wanted.cpus, total.cpus, free.cpus),
        ("GPU", wanted.gpus, total.gpus, free.gpus),
        (
            "object store GiB",
            wanted.object_store_bytes / GIB,
            total.object_store_bytes / GIB,
            free.object_store_bytes / GIB,
        ),
    ]
    short = [name for name, want, _, have in rows if want > have + ROUNDING]
    if not short:
        return
    table = [f"  {'':17}{'wanted':>9}{'total':>9}{'free':>9}"]
    table += [f"  {name:17}{want:9.2f}{all_:9.2f}{have:9.2f}" for name, want, all_, have in rows]
    listed = ", ".join(str(need) for need in needs)
    raise ConfigError(
        f"the cluster has too little {' and '.join(short)} for this run:\n" + "\n".join(table) + f"\n"
        f"It needs {listed}. {way_out}, end what else runs on the cluster, or add nodes."
    )


def _room(resources: Mapping[str, float]) -> Room:
    return Room(
        resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("object_store_memory", 0.0)
    )
