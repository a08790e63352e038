"""A reward server as an operator sees it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerStatus:
    """One Serve application with all its replicas.

    Example: `ServerStatus("reward-clip-1a2b-3c4d", "RUNNING", "clip", 1, 1, 1, 4)`.
    """

    name: str
    status: str  # RUNNING, DEPLOYING, UNHEALTHY, ...
    scorer: str  # empty where no replica answers
    num_replicas: int  # that answer
    target_replicas: int
    min_replicas: int
    max_replicas: int
    num_waiting: int = 0  # requests
    p50_s: float | None = None  # from request to answer, of the last answers
    p99_s: float | None = None
    videos_per_s: float = 0.0  # over the last minute
    clients: tuple[tuple[str, float], ...] = ()  # name, s since it was heard of
    lease_left_s: float = math.inf  # until it goes by itself, if nobody uses or holds it

    def lines(self) -> Iterator[str]:
        yield f"{self.name:44} {self.status}"
        yield (
            f"  replicas {self.num_replicas}/{self.target_replicas} ({self.min_replicas} to "
            f"{self.max_replicas})   waiting {self.num_waiting}   p50 {_seconds(self.p50_s)}   "
            f"p99 {_seconds(self.p99_s)}   {self.videos_per_s:.2f} videos/s"
        )
        used_by = ", ".join(f"{name} ({ago:.0f} s ago)" for name, ago in self.clients)
        stays = "stays" if math.isinf(self.lease_left_s) else f"goes after {self.lease_left_s:.0f} idle s"
        yield f"  used by {used_by or 'nobody'}   {stays}"


@dataclass(frozen=True)
class BenchResult:
    """What a running server does under a steady load. Seconds are from request to answer."""

    num_videos: int
    seconds: float
    p50_s: float
    p99_s: float
    batch_sizes: tuple[tuple[int, int], ...]  # videos in a batch, batches of this size
    num_replicas: int

    def lines(self) -> Iterator[str]:
        batches = sum(count for _, count in self.batch_sizes)
        mean = sum(size * count for size, count in self.batch_sizes) / max(1, batches)
        largest = max((size for size, _ in self.batch_sizes), default=0)
        yield f"{self.num_videos / self.seconds:.2f} videos/s by {self.num_replicas} replicas"
        yield f"p50 {_seconds(self.p50_s)}   p99 {_seconds(self.p99_s)}"
        yield f"{batches} batches of {mean:.1f} videos on average, at most {largest}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
