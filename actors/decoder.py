"""Latent chunks to uint8 frames while the next chunk is still to be denoised.

Legend: B batch, T latent frames, F frames (4 (T - 1) + 1), C channels, H height, W width.
"""

from __future__ import annotations

import copy
import time

import numpy as np
from torch import Tensor

from astrolabe_ray.models.vae import VideoVAE

FRAMES_PER_LATENT_FRAME = 4


class VideoDecoder:
    """Decodes `batch` videos chunk by chunk and keeps their frames in one array that is allocated once.

    Of the frames before `first_latent_frame`, which nobody looks at, those that the first one kept depends
    on are decoded, and none is kept. `seconds` is the time spent decoding so far; chunks must be ready on
    the device (see `add`).
    """

    def __init__(
        self,
        vae: VideoVAE,
        *,
        batch: int,
        num_latent_frames: int,
        height: int,
        width: int,
        first_latent_frame: int = 0,
    ) -> None:
        """`height` and `width` in pixels; `first_latent_frame`: the first one whose frames are kept."""
        self._num_unseen = max(0, first_latent_frame - vae.context_frames)  # latent frames not to be decoded
        num_kept = num_frames_of(num_latent_frames) - num_frames_of(first_latent_frame)
        self._stream = vae.stream(batch)
        self._videos = np.empty((batch, num_kept, 3, height, width), np.uint8)
        context = num_frames_of(first_latent_frame - self._num_unseen)  # the stream's first gives one frame
        self._num_done = -context  # frames kept; below 0: still to be skipped
        self.seconds = 0.0

    def fork(self, batch: int) -> VideoDecoder:
        """A decoder of `batch` videos that go on from this one's only video, of which it kept no frame yet.

        Its `seconds` start at 0; this one stays as it is.
        """
        assert self._num_done <= 0, "frames before a fork would be lost"
        forked = copy.copy(self)
        forked._stream = self._stream.fork(batch)
        forked._videos = np.empty((batch, *self._videos.shape[1:]), np.uint8)
        forked.seconds = 0.0
        return forked

    def add(self, chunk_BTCHW: Tensor) -> None:
        """Decode the next chunk. Its own computation should have ended, or it is counted here."""
        start = time.perf_counter()
        num_unseen = min(self._num_unseen, chunk_BTCHW.shape[1])
        self._num_unseen -= num_unseen
        if num_unseen == chunk_BTCHW.shape[1]:
            return
        chunk_BTCHW = chunk_BTCHW[:, num_unseen:]
        frames = to_uint8(self._stream.decode(chunk_BTCHW))
        end = self._num_done + frames.shape[1]
        if end > 0:
            kept = frames[:, max(0, -self._num_done) :]
            self._videos[:, end - kept.shape[1] : end] = kept
        self._num_done = end
        self.seconds += time.perf_counter() - start

    def videos(self) -> np.ndarray:
        """The frames that are kept, uint8 [B, F, 3, H, W]; call after the last chunk."""
        assert self._num_done == self._videos.shape[1], (
            f"{self._num_done} of {self._videos.shape[1]} frames decoded"
        )
        return self._videos


def num_frames_of(num_latent_frames: int) -> int:
    """Frames of that many latent frames from the start of a video."""
    return max(0, FRAMES_PER_LATENT_FRAME * (num_latent_frames - 1) + 1)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[-1, 1] to 0..255, rounded to the nearest; the shape stays."""
    return pixels.add(1.0).mul(127.5).round().clamp(0, 255).byte().cpu().numpy()
