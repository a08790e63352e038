"""Which latent frames a chunk may look at: one rule for sampling and for training.

Frames are whole latent frames, counted from the start of the video. No tensors here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from astrolabe_ray.errors import ConfigError


@dataclass(frozen=True)
class ContextRule:
    """A chunk attends to itself, to the sink frames and to the newest frames that the window holds.

    Example: `ContextRule(3, 7, 1)` lets frames 6..8 see 0 | 3 4 5 | 6 7 8.
    Raises ConfigError if a chunk and the sink do not fit the window.
    """

    chunk_frames: int
    window_frames: int | None  # sink and current chunk included; None: all frames
    sink_frames: int  # first frames of the video, never evicted
    rope: Literal["absolute", "relative"] = "absolute"  # frame index, or slot in the window

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or self.sink_frames < 0:
            raise ConfigError(
                f"chunk_frames {self.chunk_frames} must be >= 1 and sink_frames {self.sink_frames} >= 0"
            )
        needed = self.sink_frames + self.chunk_frames
        if self.window_frames is not None and self.window_frames < needed:
            raise ConfigError(
                f"window_frames {self.window_frames} is smaller than sink_frames {self.sink_frames} + "
                f"chunk_frames {self.chunk_frames} = {needed}; use {needed} or more"
            )

    def chunks(self, num_frames: int) -> list[tuple[int, int]]:
        """Start and end of each chunk of a video; the last one may be shorter."""
        step = self.chunk_frames
        return [(start, min(start + step, num_frames)) for start in range(0, num_frames, step)]

    def visible(self, start: int, end: int) -> list[tuple[int, int]]:
        """Runs of earlier frames that the chunk `start..end` sees, in order, none of them empty."""
        evicted = self.num_evicted(end)
        if not evicted:
            return [(0, start)] if start else []
        runs = [(0, self.sink_frames), (self.sink_frames + evicted, start)]
        return [(first, last) for first, last in runs if first < last]

    def num_evicted(self, end: int) -> int:
        """Frames behind the sink that no longer fit when the newest chunk ends at frame `end`."""
        return 0 if self.window_frames is None else max(0, end - self.window_frames)

    def sink_shift(self, end: int) -> int:
        """Frames by which the sink's temporal position moves on, so that it stays next to the window.

        0 with absolute positions. With relative ones a frame's position is its slot in the window;
        rotary attention sees differences only, so moving the sink is the same as renumbering the rest.
        """
        return self.num_evicted(end) if self.rope == "relative" and self.sink_frames else 0
