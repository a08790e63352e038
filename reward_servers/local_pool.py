"""The rewards of a run in this process, without Ray: the oracle for the served ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import DataFailure
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers.scorers import scorer_class


class LocalRewardPool:
    """Fulfils `roles.RewardPool`; blobs are arrays."""

    def __init__(self, rewards: Sequence[RewardConfig]) -> None:
        self._scorers = {reward.key: scorer_class(reward.key)() for reward in rewards}

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        return tuple(dict.fromkeys(scorer.frames for scorer in self._scorers.values()))

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        began = time.monotonic()
        prompts = [rollout.prompt for rollout in rollouts]
        columns: dict[str, np.ndarray] = {}
        for key, scorer in self._scorers.items():
            view = self.views.index(scorer.frames)
            columns[key] = scorer.score(np.stack([rollout.views[view] for rollout in rollouts]), prompts)
            if not np.isfinite(columns[key]).all():
                raise DataFailure(f"{key} gave a score that is not finite to a video of '{prompts[0]}'")
        seconds = (time.monotonic() - began) / len(rollouts)
        return [
            Scores({key: float(column[i]) for key, column in columns.items()}, seconds)
            for i in range(len(rollouts))
        ]

    async def stop(self) -> None: ...
