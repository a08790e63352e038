"""What a replica did lately and for whom, and what all replicas of a server did together."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

KEPT_ANSWERS = 1024
RATE_WINDOW_S = 60.0
KEPT_CLIENTS_S = 3600.0
"""A client that was not heard of for so long is forgotten."""


@dataclass(frozen=True)
class ReplicaReport:
    """One replica now.

    Example: `ReplicaReport(spec, 71, 3, 120, {8: 15}, ((0.2, 0.05, 8),), {"a": 0.2}, 60)`.
    """

    spec: object  # the ServerSpec that it was started with
    pid: int
    num_waiting: int  # requests
    num_videos: int  # scored since it started
    batch_sizes: Mapping[int, int]  # videos in a batch -> batches, since it started
    answers: tuple[tuple[float, float, int], ...]  # (s ago, s from request to answer, videos), the last ones
    clients: Mapping[str, float]  # name -> s since it was heard of
    lease_left_s: float  # infinite: it stays


class Usage:
    """Filled by a replica, in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._answers: deque[tuple[float, float, int]] = deque(maxlen=KEPT_ANSWERS)
        self._heard: dict[str, float] = {}
        self.batch_sizes: Counter[int] = Counter()

    def heard_of(self, client: str) -> None:
        now = self._clock()
        self._heard[client] = now
        self._heard = {name: at for name, at in self._heard.items() if now - at < KEPT_CLIENTS_S}

    def answered(self, seconds: float, num_videos: int) -> None:
        self._answers.append((self._clock(), seconds, num_videos))

    @property
    def num_videos(self) -> int:
        return sum(size * count for size, count in self.batch_sizes.items())

    @property
    def answers(self) -> tuple[tuple[float, float, int], ...]:
        now = self._clock()
        return tuple((now - at, seconds, videos) for at, seconds, videos in self._answers)

    @property
    def clients(self) -> dict[str, float]:
        now = self._clock()
        return {name: now - at for name, at in self._heard.items()}


def quantiles(reports: Sequence[ReplicaReport], *which: float) -> list[float | None]:
    """Of the seconds from request to answer, over the last answers of all replicas; None without any."""
    seconds = [seconds for report in reports for _, seconds, _ in report.answers]
    return [float(np.quantile(seconds, q)) if seconds else None for q in which]


def videos_per_s(reports: Sequence[ReplicaReport]) -> float:
    """Over the last minute, or less where no more answers are kept."""
    rate = 0.0
    for report in reports:
        recent = [(ago, videos) for ago, _, videos in report.answers if ago <= RATE_WINDOW_S]
        window_s = (
            max(ago for ago, _ in recent) if len(report.answers) == KEPT_ANSWERS and recent else RATE_WINDOW_S
        )
        rate += sum(videos for _, videos in recent) / window_s
    return rate


def clients_of(reports: Sequence[ReplicaReport]) -> tuple[tuple[str, float], ...]:
    """Who uses a server: name and seconds since any replica heard of it, the latest first."""
    found: dict[str, float] = {}
    for report in reports:
        for name, ago in report.clients.items():
            found[name] = min(ago, found.get(name, ago))
    return tuple(sorted(found.items(), key=lambda each: (each[1], each[0])))
