"""What a scorer is, and which ones there are.

A scorer is loaded once and scores batches of videos; it knows neither Ray nor other scorers.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import numpy as np

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import BUILTIN
from astrolabe_ray.types import FrameSpec


class Scorer(Protocol):
    """One reward model. Higher scores are better; their range is the scorer's own."""

    frames: FrameSpec
    """The view of a video that `score` gets."""

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores float32 [B] of `videos` uint8 [B, F, 3, H, W].

        Raises DataFailure for an input that it cannot judge. A video's score does not depend on what
        else is in the batch.
        """
        ...


SCORERS = {
    "tiny_clip": "reward_servers.tiny_clip_scorer:TinyClipScorer",
    "motion_quality": "reward_servers.motion_scorer:MotionScorer",
    "image_quality": "reward_servers.image_quality_scorer:ImageQualityScorer",
}
"""Reward key -> module and class; imported only where it is used."""

WEIGHTS = {"tiny_clip": (BUILTIN["builtin:sprites"] / "clip", BUILTIN["builtin:sprites"] / "tokenizer")}
"""Reward key -> files and folders that the scorer loads, for those that load any."""


def scorer_class(key: str) -> type[Scorer]:
    """The class behind a reward key. Raises ConfigError for an unknown key."""
    if key not in SCORERS:
        meant = difflib.get_close_matches(key, SCORERS, n=1)
        hint = f"did you mean '{meant[0]}'? " if meant else ""
        raise ConfigError(f"there is no scorer '{key}'; {hint}There are: {', '.join(sorted(SCORERS))}")
    module, name = SCORERS[key].split(":")
    return getattr(import_module(module), name)
