"""Rewards of earlier steps by prompt: what a new reward of that prompt is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from astrolabe_ray.types import ControllerState, RolloutGroup

Rewards = Sequence[Sequence[float]]
"""A number for each rollout of each group."""


class PromptHistory:
    """The newest `size` rewards of every prompt that was trained on."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._newest: dict[str, list[float]] = {}

    def of(self, groups: Sequence[RolloutGroup]) -> list[list[float]]:
        """Rewards of earlier steps for each group, oldest first."""
        return [list(self._newest.get(group.prompt, ())) for group in groups]

    def add(self, groups: Sequence[RolloutGroup], rewards: Rewards) -> None:
        """Remember a step's rewards, after `of` was asked for it."""
        if self._size == 0:
            return
        for group, row in zip(groups, rewards, strict=True):
            self._newest[group.prompt] = [*self._newest.get(group.prompt, ()), *row][-self._size :]

    def state(self) -> ControllerState:
        """What a checkpoint keeps; nothing when nothing is remembered."""
        return {"prompt_rewards": {p: list(row) for p, row in self._newest.items()}} if self._size else {}

    def restore(self, state: ControllerState) -> None:
        """Inverse of `state`. A run that did not remember yet starts with an empty memory."""
        rows = state.get("prompt_rewards", {}) if self._size else {}
        self._newest = {prompt: list(row[-self._size :]) for prompt, row in rows.items()}


def of_same_prompt(groups: Sequence[RolloutGroup], rewards: Rewards) -> list[list[float]]:
    """For each group the rewards of the other groups with its prompt."""
    return [
        [
            reward
            for other, row in zip(groups, rewards, strict=True)
            if other is not group and other.prompt == group.prompt
            for reward in row
        ]
        for group in groups
    ]
