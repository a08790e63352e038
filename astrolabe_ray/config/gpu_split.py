"""How a number of GPUs is divided among rollout actors, reward servers and learner ranks.

The stages of a step overlap, so the slowest one sets the pace: GPUs go where they shorten it most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astrolabe_ray.config.scorer_cards import BY_NAME, by_server, num_views
from astrolabe_ray.errors import ConfigError

LIGHT = 1.0
"""TFLOP for scorers that compute hardly anything: they get a place, and no more."""


@dataclass(frozen=True)
class StageCosts:
    """TFLOP for a video of 81 frames of 480x832; only their proportions matter."""

    rollout: float  # sampling with adapters, decoding, text
    learner: float  # old, new and reference forwards, recomputation, backward


COSTS_1_3B = StageCosts(rollout=1374.6, learner=1263.7)
COSTS_14B = StageCosts(rollout=7115.0, learner=7604.0)


@dataclass(frozen=True)
class ServerShare:
    """Replicas of one reward server and the part of a GPU that each of them takes."""

    num_replicas: int
    num_gpus: float


@dataclass(frozen=True)
class GpuSplit:
    """Processes of each role and the part of a GPU that each takes; together exactly the GPUs there are."""

    num_actors: int
    gpus_per_actor: float
    num_ranks: int
    gpus_per_rank: float
    servers: dict[str, ServerShare]  # by scorer, in the order of the rewards


def divide(num_units: int, costs: Sequence[float]) -> tuple[int, ...]:
    """Units for each stage so that the largest cost per unit is the smallest possible; at least one each.

    Example: `divide(8, (1334, 957, 1226))` is (3, 2, 3). Raises ConfigError for fewer units than stages.
    """
    if num_units < len(costs):
        raise ConfigError(f"{num_units} GPUs can't be divided among {len(costs)} stages with one each")
    units = [1] * len(costs)
    for _ in range(num_units - len(costs)):
        slowest = max(range(len(costs)), key=lambda i: costs[i] / units[i])
        units[slowest] += 1
    return tuple(units)


def split_gpus(num_gpus: int, costs: StageCosts, reward_keys: Sequence[str]) -> GpuSplit:
    """The division of `num_gpus` for a model and the built-in rewards of a run.

    From three GPUs on each process has whole ones, but for several reward servers, which share. On
    two, the learner shares one with the reward servers; on one, everything shares.
    """
    work = server_costs(reward_keys)
    if num_gpus == 1:
        return GpuSplit(1, 0.4, 1, 0.4, _shared(0.2, work))
    if num_gpus == 2:
        return GpuSplit(1, 1, 1, 0.5, _shared(0.5, work))
    actors, reward_gpus, ranks = divide(num_gpus, (costs.rollout, sum(work.values()), costs.learner))
    shares = _servers(reward_gpus, list(work.values()))
    return GpuSplit(actors, 1, ranks, 1, dict(zip(work, shares, strict=True)))


def server_costs(reward_keys: Sequence[str]) -> dict[str, float]:
    """Scorer -> TFLOP for a video of 81 frames: a forward for each view that the keys look at."""
    return {
        name: num_views(keys) * (BY_NAME[name].tflop or LIGHT)
        for name, keys in by_server(reward_keys).items()
    }


def _shared(num_gpus: float, work: Mapping[str, float]) -> dict[str, ServerShare]:
    """One replica each, all on the same part of a GPU."""
    return {name: ServerShare(1, num_gpus / len(work)) for name in work}


def _servers(num_gpus: int, costs: Sequence[float]) -> tuple[ServerShare, ...]:
    """A single reward gets whole GPUs. Several get equal parts of them, at least two parts a GPU: a light
    server then leaves the other part to a heavy one, which computes on the whole GPU while that one rests.
    """
    parts = 1 if len(costs) == 1 else max(2, -(-len(costs) // num_gpus))
    return tuple(ServerShare(count, 1 / parts) for count in divide(parts * num_gpus, costs))
