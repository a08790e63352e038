"""What holds for every scorer: which inputs it takes, and that its numbers are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import scorer_name
from astrolabe_ray.errors import DataFailure
from astrolabe_ray.types import FrameSpec
from reward_servers.scorers import Scorer, card_of

Numbers = dict[str, list[float]]
"""Name of a number -> its value for each video."""


@dataclass(frozen=True)
class Question:
    """One view for one server: what several rewards of a run may share."""

    scorer: str
    frames: FrameSpec


def questions_of(rewards: Iterable[RewardConfig]) -> dict[Question, dict[str, str]]:
    """What must be asked for `rewards`, each once -> reward key -> name of its number in the answer.

    Raises ConfigError for a key that no scorer has.
    """
    found: dict[Question, dict[str, str]] = {}
    for reward in rewards:
        reading = card_of(reward.key).reading(reward.key)
        question = Question(scorer_name(reward.key), reading.frames)
        found.setdefault(question, {})[reward.key] = reading.number
    return found


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises DataFailure for a prompt that says nothing."""
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            raise DataFailure(f"the prompt of video {number} is empty; a score is of a video and its prompt")


def finite_numbers(scorer: Scorer, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """What `scorer` says, each float32 [B]. Raises DataFailure naming a number that is not finite."""
    numbers = scorer.score(videos, prompts)
    for name, column in numbers.items():
        assert column.shape == (len(prompts),), f"{type(scorer).__name__} gave {name} as {column.shape}"
        for value, prompt in zip(column, prompts, strict=True):
            if not np.isfinite(value):
                raise DataFailure(f"{type(scorer).__name__} gave {name} {value} to the video of '{prompt}'")
    return numbers
