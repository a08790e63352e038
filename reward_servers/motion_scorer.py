"""Motion quality from dense optical flow (OpenCV DIS): does something move, as one, and steadily?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np

from astrolabe_ray.errors import DataFailure
from reward_servers.scorers import ScorerSetup

STRIDE = 2
"""Frames between the two of a pair: slow motion must stand out from rounding."""
FLOW_SIZE = 64
"""Side in pixels at which flow is computed; DIS needs some room for its patches."""
FULL_SPEED = 0.02
"""Share of the picture's diagonal per frame at which presence reaches 1 - 1/e."""
RESIDUAL = 0.35
"""Share of the change between frames that motion leaves unexplained at which coherence falls to 1/e."""
MIN_CHANGE = 0.5
"""Mean absolute change in 8-bit levels below which nothing happens."""


class MotionScorer:
    """Presence x coherence, in 0..1, averaged over frame pairs, times steadiness.

    presence = 1 - exp(-speed / 0.02) with the speed of the fastest 5 % of the pixels, in diagonals per
    frame. coherence = exp(-residual / 0.35), where residual is the change that remains after the
    second frame was warped back along the flow, relative to the change without warping. A still video
    has no presence; flicker and noise change much and flow explains none of it. steadiness, in 0..1, is
    1 - |v - w| / (|v| + |w|) for the mean velocities v, w of what moves in successive pairs: jumping
    about has little of it. Velocities below a pixel count as steady.
    """

    def __init__(self, setup: ScorerSetup) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        rows, columns = np.mgrid[0:FLOW_SIZE, 0:FLOW_SIZE].astype(np.float32)
        self._columns, self._rows = columns, rows

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]; prompts are not looked at. Raises DataFailure for fewer than five frames."""
        if videos.shape[1] <= 2 * STRIDE:  # steadiness compares two pairs
            raise DataFailure(
                f"motion_quality needs {2 * STRIDE + 1} frames, the videos have {videos.shape[1]}"
            )
        return {"motion_quality": np.array([self._video(video) for video in videos], dtype=np.float32)}

    def _video(self, video: np.ndarray) -> float:
        channel = video.var(axis=(0, 2, 3)).argmax()  # the colour channel with most contrast
        size = (FLOW_SIZE, FLOW_SIZE)
        planes = [cv2.resize(f[channel], size, interpolation=cv2.INTER_CUBIC) for f in video[::STRIDE]]
        pairs = [self._pair(a, b) for a, b in pairwise(planes)]
        velocities = np.array([velocity for _, velocity in pairs])
        return float(np.mean([quality for quality, _ in pairs])) * _steadiness(velocities)

    def _pair(self, first: np.ndarray, second: np.ndarray) -> tuple[float, np.ndarray]:
        """Presence x coherence of a pair, and the mean velocity (x, y) in pixels of what moves."""
        change = np.abs(second.astype(np.float32) - first).mean()
        if change < MIN_CHANGE:
            return 0.0, np.zeros(2)
        flow = self._flow.calc(first, second, None)  # type: ignore[call-overload]
        warped = cv2.remap(
            second,
            self._columns + flow[..., 0],
            self._rows + flow[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        residual = np.abs(warped.astype(np.float32) - first).mean() / change
        speeds = np.hypot(flow[..., 0], flow[..., 1])
        moving = speeds >= np.percentile(speeds, 95)
        speed = speeds[moving].mean() / (np.hypot(*first.shape) * STRIDE)
        quality = (1 - np.exp(-speed / FULL_SPEED)) * np.exp(-residual / RESIDUAL)
        return float(quality), flow[moving].mean(axis=0)


def _steadiness(velocities: np.ndarray) -> float:
    """Of mean velocities [pairs, 2] in pixels."""
    changes = np.linalg.norm(np.diff(velocities, axis=0), axis=1)
    lengths = np.linalg.norm(velocities, axis=1)
    return float(1 - np.mean(changes / (lengths[:-1] + lengths[1:] + 1)))
