"""A scorer that is bound by waiting, as one on a GPU is, and gives back the number drawn into each video."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module

import numpy as np

from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from astrolabe_ray.types import FrameSpec
from reward_servers.scorers import ScorerSetup

KEY = "tests.waiting_scorer:Waits"
FRAMES = FrameSpec(num_frames=1)


class Waits:
    """`number`: of the video, or of a module that the scorer's own environment has. `breaks_at`: a number."""

    card = ScorerCard(
        "waits",
        {"number": Reading(FRAMES)},
        "Apache-2.0",
        options={"seconds": "0.1", "module": "", "breaks_at": "-1"},
    )

    def __init__(self, setup: ScorerSetup) -> None:
        self.seconds = float(setup.options["seconds"])
        self.breaks_at, self.is_broken = float(setup.options["breaks_at"]), False
        module = setup.options["module"]
        self.number = import_module(module).NUMBER if module else None

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        numbers = videos[:, 0, 0, 0, 0] + 256.0 * videos[:, 0, 1, 0, 0]
        self.is_broken = self.is_broken or self.breaks_at in numbers
        if self.is_broken:  # from then on, as after an error of CUDA
            raise RuntimeError("an illegal memory access was encountered")
        return {"number": np.full_like(numbers, self.number or 0) if self.number else numbers}


def numbered(number: int) -> np.ndarray:
    """A video uint8 [1, 3, 4, 4] that says its number, below 65536."""
    video = np.zeros((1, 3, 4, 4), np.uint8)
    video[:, 0], video[:, 1] = number % 256, number // 256
    return video
