"""Which processes serve rewards on this machine, seen from outside of Ray."""

from __future__ import annotations

import psutil


def replica_pids() -> set[int]:
    """Process ids of the living replicas of all reward servers; Ray names its workers by what they run."""
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith("ray::ServeReplica:reward-") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found
