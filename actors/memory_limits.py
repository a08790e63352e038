"""Memory that runs out, on a GPU or beside it, in a line that says what would need less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from astrolabe_ray.errors import ConfigError

_CPU_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "insufficient memory")
"""What torch's allocator says in a plain RuntimeError, here and on Windows; then the system's words, and
those of OpenCV, which have an error of their own."""


@contextmanager
def memory_limits(who: str, doing: str, *, on_gpu: str, on_cpu: str) -> Iterator[None]:
    """Raises ConfigError where the body runs out of memory.

    `doing`: as in "with 4 videos at a time". `on_gpu`, `on_cpu`: what would need less of that memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError, cv2.error) as reason:
        kind = _kind_of_memory(reason)
        if kind is None:
            raise
        said = (str(reason).splitlines() or ["it is full"])[0].rstrip(".")
        way_out = on_gpu if kind == "GPU" else on_cpu
        raise ConfigError(f"{who} ran out of {kind} memory {doing}: {said}. {way_out}") from None


def _kind_of_memory(reason: BaseException) -> str | None:
    """None for an error about something else."""
    if isinstance(reason, torch.OutOfMemoryError):
        return "GPU"
    is_cpus = isinstance(reason, MemoryError) or any(words in str(reason).lower() for words in _CPU_WORDS)
    return "CPU" if is_cpus else None
