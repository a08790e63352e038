"""What a scorer is, which ones there are, and how one from outside is found.

A scorer is loaded once and scores batches of videos; it knows neither Ray nor other scorers. This module
loads no scorer, so that keys and files are checked before torch is there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from astrolabe_ray.config.reward_files import REWARD_DIR
from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import BY_KEY, BY_NAME, ScorerCard, parse_options, scorer_name
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import BUILTIN
from astrolabe_ray.models.reward_files import file_problems

ENTRY_POINTS = "astrolabe_ray.scorers"
"""Group of entry points: name of the scorer -> its class."""


@dataclass(frozen=True)
class ScorerSetup:
    """What a scorer is told when it is loaded."""

    folder: Path = Path(REWARD_DIR)  # of its files
    device: str = "cpu"
    frames_per_forward: int = 32
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_compiled(self) -> bool:
        """Whether the scorer's network goes through torch.compile."""
        return self.options.get("compile") == "yes"


class Scorer(Protocol):
    """One reward model. Higher scores are better; their range is the scorer's own.

    Made once with a `ScorerSetup`; may raise ConfigError for files that it can't use. A scorer from outside
    also has a class attribute `card`, a `ScorerCard`, and imports what is heavy only when it is made.
    """

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Numbers float32 [B] of `videos` uint8 [B, F, 3, H, W] by name; the card tells keys from names.

        Raises DataFailure for an input that it cannot judge. A video's score does not depend on what
        else is in the batch.
        """
        ...


SCORERS = {
    "tiny_clip": "reward_servers.tiny_clip_scorer:TinyClipScorer",
    "motion_quality": "reward_servers.motion_scorer:MotionScorer",
    "image_quality": "reward_servers.image_quality_scorer:ImageQualityScorer",
    "hpsv3": "reward_servers.hpsv3_scorer:HPSv3Scorer",
    "videoreward": "reward_servers.videoreward_scorer:VideoRewardScorer",
    "hpsv2": "reward_servers.clip_scorers:HPSv2Scorer",
    "aesthetic": "reward_servers.clip_scorers:AestheticScorer",
    "clip": "reward_servers.clip_scorers:ClipScorer",
    "optical_flow": "reward_servers.flow_scorer:FlowScorer",
    "unifiedreward": "reward_servers.unifiedreward_scorer:UnifiedRewardScorer",
}
"""Built-in scorer -> module and class; imported only where it is loaded. Their cards are in `config`."""

WEIGHTS = {"tiny_clip": (BUILTIN["builtin:sprites"] / "clip", BUILTIN["builtin:sprites"] / "tokenizer")}
"""Scorer -> files and folders of this repository that it loads; other files are on its card."""


def card_of(key: str) -> ScorerCard:
    """The card behind a reward key. Raises ConfigError for a key that no scorer has."""
    name = scorer_name(key)
    card = BY_NAME[name] if key in BY_KEY else outside_class(name).card
    inner = key.partition("/")[2]
    if key not in BY_KEY and (inner not in card.keys if inner else len(card.keys) != 1):
        ways = ", ".join(f"{name}/{each}" for each in card.keys)
        raise ConfigError(f"'{key}' does not say which number of the scorer is meant; there are: {ways}")
    return card


def card_of_scorer(name: str) -> ScorerCard:
    """Raises ConfigError for an unknown scorer."""
    return BY_NAME[name] if name in BY_NAME else outside_class(name).card


def scorer_class(name: str) -> Any:
    """The class of a scorer by its name. Raises ConfigError for an unknown one."""
    if name not in SCORERS:
        return outside_class(name)
    module, attribute = SCORERS[name].split(":")
    return getattr(import_module(module), attribute)


def outside_class(name: str) -> Any:
    """A scorer that does not come with this project: `module:object`, or the name of an entry point.

    Raises ConfigError when there is none, when it can't be imported, or when it has no card.
    """
    place = name
    if ":" not in name:
        installed = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
        if name not in installed:
            raise ConfigError(_unknown(name, sorted([*BY_KEY, *installed])))
        place = installed[name]
    module, _, attribute = place.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as reason:
        raise ConfigError(
            f"scorer '{name}' can't be imported: {reason}. Write MODULE:CLASS of a module that every node "
            "can import: in the folder of launch.py, or installed."
        ) from None
    if not isinstance(getattr(found, "card", None), ScorerCard):
        raise ConfigError(f"scorer '{name}' has no class attribute `card`; it must be a ScorerCard")
    return found


def load_scorer(name: str, setup: ScorerSetup) -> Scorer:
    """Raises ConfigError for an unknown scorer and for files that it can't use."""
    return scorer_class(name)(setup)


def setup_of(reward: RewardConfig) -> ScorerSetup:
    """How the scorer of `reward` is loaded. Raises ConfigError for an unknown key or option."""
    card = card_of(reward.key)
    try:
        options = parse_options(reward.options, card)
    except ValueError as reason:
        raise ConfigError(str(reason)) from None
    if options.get("compile") not in (None, "yes", "no"):
        raise ConfigError(f"the option compile={options['compile']} of {card.name} must be yes or no")
    folder = Path(reward.folder).expanduser().resolve()
    return ScorerSetup(folder, "cuda" if reward.num_gpus else "cpu", reward.frames_per_forward, options)


def reward_problems(reward: RewardConfig) -> list[tuple[str, str]]:
    """Why `reward` can't be scored here, each with the option to blame, if there is one.

    Loads no built-in scorer.
    """
    try:
        card = card_of(reward.key)
    except ConfigError as error:
        return [("key", str(error))]
    try:
        options = setup_of(reward).options
    except ConfigError as error:
        return [("options", str(error))]
    folder, runs_here = Path(reward.folder).expanduser(), not (reward.python or reward.packages)
    return [("", line) for line in file_problems(card, folder, options, runs_here=runs_here)]


def _unknown(key: str, known: Sequence[str]) -> str:
    meant = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{meant[0]}'? " if meant else ""
    return f"there is no scorer '{key}'; {hint}There are: {', '.join(known)}, or MODULE:CLASS"
