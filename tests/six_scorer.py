"""A scorer that says which version of a package it runs with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from astrolabe_ray.types import FrameSpec
from reward_servers.scorers import ScorerSetup


class SixVersion:
    """`minor`: 15 for six 1.15.0."""

    card = ScorerCard("six_version", {"minor": Reading(FrameSpec(num_frames=1))}, "MIT")

    def __init__(self, setup: ScorerSetup) -> None:
        import six

        self._minor = float(six.__version__.split(".")[1])

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        return {"minor": np.full(len(prompts), self._minor, np.float32)}
