"""Whose distance to the reference policy counts in a step, from the scores of its groups."""

from __future__ import annotations

from collections.abc import Sequence

from astrolabe_ray.algorithms.released_kl import (
    NUM_OTHERS,
    released_adapted,
    released_disagreement,
    released_selected,
)
from astrolabe_ray.algorithms.selective_kl import KlShare, adapted, disagreement, selected
from astrolabe_ray.config.schema import RewardConfig, RunConfig
from astrolabe_ray.types import ControllerState, RolloutGroup

Rows = list[list[float]]
"""A number for each rollout of each group."""


class KlSelection:
    """Weights of the KL penalty: 1 for every sample, or chosen by the disagreement of the rewards."""

    def __init__(self, config: RunConfig) -> None:
        algorithm = config.algorithm
        self._main = algorithm.main_reward if algorithm.kl_samples == "disagreeing" else None
        self._rewards, self._rule = config.rewards, algorithm.kl_rule
        self._share = KlShare()

    def weights(self, groups: Sequence[RolloutGroup]) -> tuple[Rows, dict[str, float]]:
        """Weights with mean 1 over the batch, or all 0 when no sample is selected; and metrics.

        Ranks are taken over the whole batch. Moves the share on: call it once per step.
        """
        if self._main is None:
            return [[1.0] * len(group.rollouts) for group in groups], {}
        rows = {reward.key: _signed(groups, reward) for reward in self._rewards}
        others = [row for key, row in rows.items() if key != self._main]
        if self._rule == "release":
            others = [rows[key] for key in sorted(rows) if key != self._main][:NUM_OTHERS]
            values = released_disagreement(rows[self._main], others)
            self._share = released_adapted(self._share, values)
            chosen = released_selected(values, self._share.share)
        else:
            values = disagreement(rows[self._main], others)
            self._share = adapted(self._share, values)
            chosen = selected(values, self._share.share)
        weight = len(chosen) / max(1, sum(chosen))
        flat = iter([weight if is_selected else 0.0 for is_selected in chosen])
        metrics = {"kl/share": self._share.share, "kl/selected": sum(chosen) / len(chosen)}
        return [[next(flat) for _ in group.rollouts] for group in groups], metrics

    def state(self) -> ControllerState:
        """What a checkpoint keeps; nothing when no sample is chosen."""
        if self._main is None:
            return {}
        return {"kl_share": self._share.share, "kl_recent": list(self._share.recent)}

    def restore(self, state: ControllerState) -> None:
        """Inverse of `state`; a checkpoint of the first release has none, and the share begins anew."""
        if self._main is not None and "kl_share" in state:
            self._share = KlShare(state["kl_share"], tuple(state["kl_recent"]))


def _signed(groups: Sequence[RolloutGroup], reward: RewardConfig) -> list[float]:
    """A reward's scores of all rollouts, turned round if less of it is better."""
    sign = -1 if reward.weight < 0 else 1
    return [sign * scores.values[reward.key] for group in groups for scores in group.scores]
