"""What videos look like, whatever they show: motion, brightness, saturation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601


def looks(videos: Sequence[np.ndarray]) -> dict[str, float]:
    """Means over videos uint8 [F, 3, H, W], all in units of full scale.

    motion: mean absolute difference of neighbouring frames. brightness: mean luma. saturation: mean of
    (max - min) / max over the channels of a pixel, 0 for black.
    """
    seen = [_looks(video.astype(np.float32) / 255) for video in videos]
    return {name: fmean(one[name] for one in seen) for name in seen[0]}


def _looks(video: np.ndarray) -> dict[str, float]:
    high, low = video.max(axis=1), video.min(axis=1)
    saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    return {
        "motion": float(np.abs(np.diff(video, axis=0)).mean()) if len(video) > 1 else 0.0,
        "brightness": float(np.tensordot(video, LUMA, (1, 0)).mean()),
        "saturation": float(saturation.mean()),
    }
