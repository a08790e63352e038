"""A scorer that only waits, as one does whose work is done by a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from astrolabe_ray.types import FrameSpec
from reward_servers.scorers import ScorerSetup

KEY = "benchmarks.simulated_device:Device"


class Device:
    """`first`: the first value of the video, after the time that a forward takes and that of each video.

    One process cannot do two forwards at the same time, and other processes have devices of their own.
    """

    card = ScorerCard(
        "device",
        {"first": Reading(FrameSpec(num_frames=1, height=32, width=32))},
        "Apache-2.0",
        options={"forward": "0.03", "video": "0.01"},
    )

    def __init__(self, setup: ScorerSetup) -> None:
        """Options in seconds."""
        self._forward, self._video = float(setup.options["forward"]), float(setup.options["video"])

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        time.sleep(self._forward + self._video * len(videos))
        return {"first": videos[:, 0, 0, 0, 0].astype(np.float32)}
