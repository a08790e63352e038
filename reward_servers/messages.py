"""What the door says, as its callers get it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ServedReward:
    """A reward that can be asked for. Example: `ServedReward("clip_score", "clip", "...", "MIT", 8, ...)`."""

    key: str
    scorer: str
    summary: str
    licence: str
    num_frames: int | None  # that it looks at, evenly spaced; None: all
    height: int | None  # pixels that they are scaled to; None: as they are
    width: int | None
    grayscale: bool
    frame_by_frame: bool  # its curve has single frames; otherwise windows


@dataclass(frozen=True)
class Point:
    """The score of frames `first` to `end` (exclusive) of a video. Example: `Point(0, 9, 0.81)`."""

    first: int
    end: int
    score: float


@dataclass(frozen=True)
class ScoredVideo:
    """Scores by reward key. Example: `ScoredVideo({"clip_score": 0.31})`."""

    scores: dict[str, float]
    curves: dict[str, list[Point]] = field(default_factory=dict)
