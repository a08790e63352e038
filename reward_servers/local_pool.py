"""The rewards of a run in this process, without Ray: the oracle for the served ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from astrolabe_ray.config.plan import servers
from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers.scorers import load_scorer, setup_of
from reward_servers.scoring import check_prompts, finite_numbers, questions_of


class LocalRewardPool:
    """Fulfils `roles.RewardPool`; blobs are arrays."""

    def __init__(self, rewards: Sequence[RewardConfig]) -> None:
        """Raises ConfigError for an unknown reward key and for files that a scorer can't use."""
        self._questions = questions_of(rewards)
        self._scorers = {
            name: load_scorer(name, setup_of(reward)) for name, reward in servers(rewards).items()
        }
        self._keys = [reward.key for reward in rewards]

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        return tuple(dict.fromkeys(question.frames for question in self._questions))

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        began = time.monotonic()
        prompts = [rollout.prompt for rollout in rollouts]
        check_prompts(prompts)
        columns: dict[str, np.ndarray] = {}
        for question, keys in self._questions.items():
            view = self.views.index(question.frames)
            videos = np.stack([rollout.views[view] for rollout in rollouts])
            numbers = finite_numbers(self._scorers[question.scorer], videos, prompts)
            columns |= {key: numbers[name] for key, name in keys.items()}
        seconds = (time.monotonic() - began) / len(rollouts)
        return [
            Scores({key: float(columns[key][i]) for key in self._keys}, seconds) for i in range(len(rollouts))
        ]

    async def stop(self) -> None: ...
