"""The part of a video that a scorer looks at."""

from __future__ import annotations

import cv2
import numpy as np

from astrolabe_ray.types import FrameSpec


def derive_view(video: np.ndarray, spec: FrameSpec) -> np.ndarray:
    """Frames of `video` uint8 [F, 3, H, W] as `spec` asks for, uint8, contiguous.

    Frames are evenly spaced with the first and the last among them. Sides change by area averaging
    when they shrink and bicubically when they grow.
    """
    if spec.num_frames is not None:
        video = video[np.linspace(0, len(video) - 1, spec.num_frames).round().astype(int)]
    height, width = spec.height or video.shape[2], spec.width or video.shape[3]
    if (height, width) != video.shape[2:]:
        frames = [_resized(frame.transpose(1, 2, 0), height, width) for frame in video]
        video = np.stack(frames).transpose(0, 3, 1, 2)
    if spec.grayscale:
        luma = video.astype(np.float32).transpose(0, 2, 3, 1) @ np.array([0.299, 0.587, 0.114], np.float32)
        video = np.repeat(luma.round().astype(np.uint8)[:, None], 3, axis=1)
    return np.ascontiguousarray(video)


def _resized(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = (min(width, frame_HWC.shape[1]), min(height, frame_HWC.shape[0]))
    frame_HWC = cv2.resize(frame_HWC, smaller, interpolation=cv2.INTER_AREA)
    return cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_CUBIC)
