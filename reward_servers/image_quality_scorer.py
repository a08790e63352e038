"""Image quality without a reference: contrast, sharp edges, clean areas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reward_servers.scorers import ScorerSetup

FULL_CONTRAST = 0.3
"""Range of intensities (0..1) from which contrast counts as full."""
FULL_SHARPNESS = 0.5
"""Steepest step between neighbouring pixels, as a share of the range, that counts as sharp."""
NOISE = 0.02
"""Roughness of the flatter half of the picture (0..1 intensities) at which cleanness falls to 1/e."""

BLOCK = 2**17
"""Values looked at together: small pictures need few calls, large ones little memory."""


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
        pictures = videos.reshape(-1, *videos.shape[2:])
        step = max(1, BLOCK // math.prod(pictures.shape[1:]))
        starts = range(0, len(pictures), step)
        parts = [_qualities(pictures[i : i + step].astype(np.float32) / 255) for i in starts]
        scores = np.concatenate(parts).reshape(videos.shape[:2]).mean(axis=1)
        return {"image_quality": scores.astype(np.float32)}


def _qualities(pictures: np.ndarray) -> np.ndarray:
    """[F] of pictures float32 [F, 3, H, W] in 0..1."""
    low, high = np.percentile(pictures, (1, 99), axis=(2, 3))
    channel = (high - low).argmax(axis=1)
    frame = np.arange(len(pictures))
    planes, spread = pictures[frame, channel], (high - low)[frame, channel]
    across, along = np.diff(planes, axis=2), np.diff(planes, axis=1)
    right, left = across[:, 1:-1, 1:], across[:, 1:-1, :-1]
    down, up = along[:, 1:, 1:-1], along[:, :-1, 1:-1]
    gradients = np.maximum.reduce([abs(right), abs(down), abs(left), abs(up)]).reshape(len(frame), -1)
    laplacians = np.abs(right - left + down - up).reshape(len(frame), -1)
    flat = gradients <= np.median(gradients, axis=1, keepdims=True)
    noise = np.where(flat, laplacians, 0).sum(axis=1) / flat.sum(axis=1)
    contrast = np.minimum(1, spread / FULL_CONTRAST)
    steepest = np.percentile(gradients, 99, axis=1)
    sharpness = np.minimum(1, steepest / np.maximum(FULL_SHARPNESS * spread, 1e-3))
    return contrast * sharpness * np.exp(-noise / NOISE)
