"""Sampling noise: one generator a video, whatever batch, length of draws or device."""

from __future__ import annotations

import pytest
import torch

from actors.noise import VideoNoise

FRAME = (4, 4, 6)
CPU = torch.device("cpu")


@pytest.mark.parametrize("num_frames", [5, 16, 37])
def test_noise_drawn_piece_by_piece_is_that_of_one_generator(num_frames: int) -> None:
    """First the start of every frame, then what is added between steps; else a seed means another video."""
    generator = torch.Generator().manual_seed(11)
    start = torch.randn(num_frames, *FRAME, generator=generator)
    between = [torch.randn(3, *FRAME, generator=generator) for _ in range(2)]
    noise = VideoNoise((11,), num_frames, FRAME, CPU)
    pieces = []
    for first in range(0, num_frames, 3):
        pieces.append(noise.initial(min(3, num_frames - first)))
        if first < 6:
            assert torch.equal(noise.between_steps(3)[0], between[first // 3])
    assert torch.equal(torch.cat(pieces, dim=1)[0], start)


def test_a_video_has_the_same_noise_in_any_batch() -> None:
    """Work that is redone in another batch would give another video."""
    together = VideoNoise((1, 2, 3), 6, FRAME, CPU)
    alone = VideoNoise((2,), 6, FRAME, CPU)
    for _ in range(2):
        assert torch.equal(together.initial(3)[1], alone.initial(3)[0])
        assert torch.equal(together.between_steps(3)[1], alone.between_steps(3)[0])
    assert not torch.equal(together.initial(3)[0], together.initial(3)[2])
