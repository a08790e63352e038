"""Step metrics as Ray gauges: they appear in Prometheus, Grafana and the Ray dashboard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ray.util.metrics import Gauge

from astrolabe_ray.metrics.names import metric


class RayMetrics:
    """`reward/total` becomes the gauge `astrolabe_reward_total` with the tag `run`."""

    def __init__(self, run_name: str) -> None:
        self._tags = {"run": run_name}
        self._gauges: dict[str, Gauge] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._gauge(name).set(value, tags=self._tags)

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """Prometheus takes numbers only."""

    def close(self) -> None: ...

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            known = metric(name)
            description = f"{known.meaning} ({known.unit})" if known else name
            full_name = "astrolabe_" + re.sub(r"\W", "_", name)
            self._gauges[name] = Gauge(full_name, description, tag_keys=("run",))
        return self._gauges[name]
