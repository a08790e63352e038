"""The clock of a run, and what an observer is told of who worked when."""

from __future__ import annotations

import time
from typing import Any

from astrolabe_ray.roles import RunObserver
from astrolabe_ray.types import Span, Stage


class Timeline:
    """Seconds since it was made."""

    def __init__(self, observer: RunObserver) -> None:
        self._observer, self._start = observer, time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._start

    def span(self, stage: Stage, who: str, start_s: float, **detail: Any) -> None:
        """Work of `who` from `start_s` until now."""
        self._observer.span(Span(stage, who, start_s, self.now(), detail))
