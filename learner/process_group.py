"""The ranks' process group: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import HashStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

JOIN_TIMEOUT = timedelta(minutes=5)


def open_store(host: str, world_size: int) -> TCPStore:
    """Rank 0's meeting point on a free port of `host`; its `.port` goes to the other ranks."""
    return TCPStore(host, 0, world_size, is_master=True, wait_for_workers=False, timeout=JOIN_TIMEOUT)


def join(
    rank: int,
    world_size: int,
    device: torch.device,
    *,
    store: Store | None = None,
    address: tuple[str, int],
    timeout_s: float,
) -> None:
    """Become rank `rank` of `world_size`. Rank 0 passes the store that it opened, the others its address.
    A collective may take `timeout_s`; a step is given no longer.

    With one rank nothing is opened on the network. A process stays in its group for good (DeepSpeed
    remembers it); a later learner in the same process uses the same one.
    Raises RuntimeError when this process is in another group.
    """
    os.environ["LOCAL_RANK"] = "0"  # Ray shows each rank its own GPU only; DeepSpeed insists on the variable
    if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) == (rank, world_size):
        return
    if store is None:
        store = HashStore() if world_size == 1 else TCPStore(*address, world_size, timeout=JOIN_TIMEOUT)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )


def sum_over_ranks(values: list[float]) -> list[float]:
    """Elementwise sum over all ranks, in float64."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
