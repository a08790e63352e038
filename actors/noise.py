"""The noise of sampling: each video has its own, whatever batch it is in and whatever device makes it.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FRAMES_PER_SKIP = 16


class VideoNoise:
    """Standard normal noise for `num_frames` latent frames of one video per seed, drawn as it is needed.

    A video's generator gives first the initial noise of all its frames, then the noise between
    denoising steps. Both are drawn side by side, from two copies of the generator, so that memory does
    not grow with the length. Values are drawn on the CPU and sent without waiting for the device.
    """

    def __init__(
        self, seeds: Sequence[int], num_frames: int, frame: tuple[int, int, int], device: torch.device
    ) -> None:
        """`frame`: channels, height and width of a latent frame; C * H * W a multiple of 16."""
        self._num_frames, self._frame, self._device = num_frames, frame, device
        self._initial = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._between = [torch.Generator().manual_seed(seed) for seed in seeds]
        for generator in self._between:
            for start in range(0, num_frames, FRAMES_PER_SKIP):
                torch.randn(min(FRAMES_PER_SKIP, num_frames - start), *frame, generator=generator)

    def of(self, seeds: Sequence[int]) -> VideoNoise:
        """From its beginning, noise of other videos of the same size."""
        return VideoNoise(seeds, self._num_frames, self._frame, self._device)

    def initial(self, num_frames: int) -> Tensor:
        """What the next `num_frames` frames start from, [B, T, C, H, W] float32."""
        return self._draw(self._initial, num_frames)

    def between_steps(self, num_frames: int) -> Tensor:
        """What `num_frames` frames are noised with again, [B, T, C, H, W] float32."""
        return self._draw(self._between, num_frames)

    def _draw(self, generators: list[torch.Generator], num_frames: int) -> Tensor:
        shape = (len(generators), num_frames, *self._frame)
        noise = torch.empty(shape, pin_memory=self._device.type == "cuda")
        for video, generator in zip(noise, generators, strict=True):
            torch.randn(shape[1:], generator=generator, out=video)
        return noise.to(self._device, non_blocking=True)
