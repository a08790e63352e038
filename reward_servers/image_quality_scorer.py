"""Image quality without a reference: contrast, sharp edges, clean areas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_servers.scorers import ScorerSetup

FULL_CONTRAST = 0.3
"""Range of intensities (0..1) from which contrast counts as full."""
FULL_SHARPNESS = 0.5
"""Steepest step between neighbouring pixels, as a share of the range, that counts as sharp."""
NOISE = 0.02
"""Roughness of the flatter half of the picture (0..1 intensities) at which cleanness falls to 1/e."""


class ImageQualityScorer:
    """contrast x sharpness x cleanness, each in 0..1, on the colour channel with the largest range.

    contrast = min(1, range / 0.3), with the range from the 1st to the 99th percentile;
    sharpness = min(1, g / (0.5 range)), with g the 99th percentile of the gradient;
    cleanness = exp(-n / 0.02), with n the mean absolute Laplacian where the gradient is below its
    median. Blur lowers the second factor, noise the third, an empty picture the first. Mean over frames.
    """

    def __init__(self, setup: ScorerSetup) -> None: ...

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]; prompts are not looked at."""
        pictures = videos.reshape(-1, *videos.shape[2:]).astype(np.float32) / 255
        scores = np.array([_quality(picture) for picture in pictures], dtype=np.float32)
        return {"image_quality": scores.reshape(videos.shape[:2]).mean(axis=1)}


def _quality(picture: np.ndarray) -> float:
    """Of one picture float32 [3, H, W] in 0..1."""
    low, high = np.percentile(picture, (1, 99), axis=(1, 2))
    channel = int((high - low).argmax())
    plane, spread = picture[channel], float(high[channel] - low[channel])
    right, down = np.diff(plane, axis=1)[1:-1, 1:], np.diff(plane, axis=0)[1:, 1:-1]
    left, up = np.diff(plane, axis=1)[1:-1, :-1], np.diff(plane, axis=0)[:-1, 1:-1]
    gradient = np.maximum.reduce([abs(right), abs(down), abs(left), abs(up)])
    laplacian = np.abs(right - left + down - up)
    noise = float(laplacian[gradient <= np.median(gradient)].mean())
    contrast = min(1.0, spread / FULL_CONTRAST)
    sharpness = min(1.0, float(np.percentile(gradient, 99)) / max(FULL_SHARPNESS * spread, 1e-3))
    return contrast * sharpness * float(np.exp(-noise / NOISE))
