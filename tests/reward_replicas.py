"""Which processes of this cluster serve rewards, seen from outside of Ray."""

from __future__ import annotations

import psutil
import ray


def replica_pids() -> set[int]:
    """Process ids of the living replicas of all reward servers; Ray names its workers by what they run.

    Other clusters on this machine do not count: a worker's parent is the raylet, which knows its cluster.
    """
    raylet_of_this_cluster = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    found = set()
    for process in psutil.process_iter():
        try:
            if not " ".join(process.cmdline()).startswith("ray::ServeReplica:reward-"):
                continue
            if raylet_of_this_cluster in process.parents()[0].cmdline():
                found.add(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue  # it ended while we looked
    return found
