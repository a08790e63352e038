"""One way to put the processes of a run on nodes of eight GPUs; Ray finds its own when it places them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from astrolabe_ray.config.plan import Need

GPUS_PER_NODE = 8
ROUNDING = 1e-6


@dataclass
class Gpu:
    """The roles on one GPU and the part of it that is free."""

    node: int
    free: float = 1.0
    roles: list[str] = field(default_factory=list)


def place(needs: Sequence[Need]) -> list[Gpu]:
    """GPUs in the order of their nodes, each with its roles. Whole GPUs are given out first, by role."""
    gpus: list[Gpu] = []
    for need in sorted(needs, key=lambda need: -need.num_gpus):
        for _ in range(need.count if need.num_gpus else 0):
            for part in _parts(need.num_gpus):
                gpu = next((gpu for gpu in gpus if gpu.free > part - ROUNDING), None)
                if gpu is None:
                    gpu = Gpu(node=len(gpus) // GPUS_PER_NODE)
                    gpus.append(gpu)
                gpu.free -= part
                gpu.roles.append(need.role)
    return gpus


def node_lines(gpus: Sequence[Gpu]) -> list[str]:
    """A line for each node. Example: `8 GPUs: 3 x learner rank, 3 x rollout actor, ...`."""
    lines = []
    for node in sorted({gpu.node for gpu in gpus}):
        mine = [gpu for gpu in gpus if gpu.node == node]
        counts = Counter(role for gpu in mine for role in gpu.roles)
        listed = ", ".join(f"{count} x {role}" for role, count in counts.items())
        lines.append(f"{len(mine)} GPU{'s' * (len(mine) > 1)}: {listed}")
    return lines


def _parts(num_gpus: float) -> list[float]:
    """Example: 2.0 -> [1.0, 1.0]."""
    whole = int(num_gpus + ROUNDING)
    return [1.0] * whole if whole else [num_gpus]
