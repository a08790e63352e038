"""Processes on nodes of eight GPUs."""

from __future__ import annotations

from astrolabe_ray.config.node_plan import node_lines, place
from astrolabe_ray.config.plan import Need


def test_processes_fill_node_after_node() -> None:
    """A role that is dropped, or a ninth GPU in a node, would promise room that is not there."""
    needs = (
        Need("learner rank", 6, 4, 1),
        Need("rollout actor", 6, 4, 1),
        Need("reward server a", 7, 2, 0.5),
        Need("reward server b", 1, 2, 0.5),
    )
    assert node_lines(place(needs)) == [
        "8 GPUs: 6 x learner rank, 2 x rollout actor",
        "8 GPUs: 4 x rollout actor, 7 x reward server a, 1 x reward server b",
    ]


def test_parts_share_a_gpu_and_processes_without_one_take_none() -> None:
    """0.4 + 0.4 + 0.2 is one GPU in spite of rounding."""
    needs = (
        Need("learner rank", 1, 4, 0.4),
        Need("rollout actor", 1, 4, 0.4),
        Need("reward server", 1, 1, 0.2),
        Need("watcher", 3, 1, 0),
    )
    (gpu,) = place(needs)
    assert gpu.roles == ["learner rank", "rollout actor", "reward server"]


def test_a_process_with_two_gpus_takes_two() -> None:
    """It would be counted once."""
    assert len(place((Need("learner rank", 2, 1, 2),))) == 4
