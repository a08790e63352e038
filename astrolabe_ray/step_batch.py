"""From the scores of a step's groups to what the learner trains on: rewards, advantages, KL weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from astrolabe_ray.algorithms.advantages import STD_EPS, centred, group_advantages, shaped
from astrolabe_ray.batching import make_train_batch
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.health.step_guards import pull
from astrolabe_ray.kl_selection import KlSelection
from astrolabe_ray.prompt_history import PromptHistory, of_same_prompt
from astrolabe_ray.step_metrics import training_rewards
from astrolabe_ray.types import ControllerState, RolloutGroup, Streamed, TrainBatch, TrainPart


@dataclass(frozen=True)
class StepBatch:
    """A batch, and the numbers that came up on the way to it."""

    batch: TrainBatch
    totals: list[list[float]]  # weighted sums of raw scores, by group and rollout
    metrics: dict[str, float]


class StepBatches:
    """Makes the batch of each step, and holds what one step hands to the next."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._kl_selection = KlSelection(config)
        self._history = PromptHistory(config.algorithm.prompt_history)
        self._trained = self._now()  # after the newest batch that was trained on

    def part(self, group: RolloutGroup, step: int) -> TrainPart | None:
        """What can be said of a group of step `step` before the others are there; None: it is left out.

        For `learner.accumulate=streaming`, whose rules see to it that only a common std is missing.
        """
        self.restore(self._trained)
        config, algorithm = self._config, self._config.algorithm
        rewards = self._rewards([group])
        beside = self._history.of([group])
        if algorithm.advantage_std == "group":
            (row,), _ = group_advantages(rewards, std="group", beside=beside)
            row = shaped(row, algorithm.advantage_mode)
        else:
            row = centred(rewards[0], beside[0])
        if algorithm.skip_equal_groups and not any(row):
            return None
        batch = self._split([group], [row], [[1.0] * len(row)], step)
        return TrainPart(group.group_id, step, config.seed, batch.ranks)

    def make(
        self, groups: Sequence[RolloutGroup], step: int, *, accumulated: Collection[str] = ()
    ) -> StepBatch:
        """What step `step` trains on. `commit` tells that it was; a batch made before that is forgotten.

        `accumulated`: ids of the groups whose gradients the learner has.
        """
        self.restore(self._trained)
        config = self._config
        rewards = self._rewards(groups)
        advantages, stats = self._advantages(groups, rewards)
        kept = self._kept(advantages)
        kept_groups = [groups[i] for i in kept]
        kl_weights, kl_stats = self._kl_selection.weights(kept_groups)
        kept_advantages = [advantages[i] for i in kept]
        batch = self._split(kept_groups, kept_advantages, kl_weights, step)
        if config.learner.accumulate == "streaming":
            num_clipped = sum(abs(a) > config.algorithm.adv_clip_max for row in kept_advantages for a in row)
            stats["streaming/clipped"] = float(num_clipped)
            if {group.group_id for group in kept_groups} == set(accumulated):
                batch = replace(batch, streamed=self._streamed(accumulated, stats))
        stats["advantage/skipped_groups"] = float(len(groups) - len(kept))
        stats["health/pull"] = pull(advantages, adv_clip_max=config.algorithm.adv_clip_max)
        return StepBatch(batch, self._rewards(groups, "raw"), stats | kl_stats)

    def commit(self) -> None:
        """The batch that was made last has been trained on."""
        self._trained = self._now()

    def state(self) -> ControllerState:
        """What a checkpoint keeps: as of the newest step that was trained."""
        return self._trained

    def restore(self, state: ControllerState) -> None:
        """Inverse of `state`."""
        self._kl_selection.restore(state)
        self._history.restore(state)
        self._trained = self._now()

    def _now(self) -> ControllerState:
        return self._kl_selection.state() | self._history.state()

    def _advantages(
        self, groups: Sequence[RolloutGroup], rewards: list[list[float]]
    ) -> tuple[list[list[float]], dict[str, float]]:
        algorithm = self._config.algorithm
        beside = self._history.of(groups)
        if algorithm.advantage_peers == "prompt":
            others = of_same_prompt(groups, rewards)
            beside = [[*past, *now] for past, now in zip(beside, others, strict=True)]
        self._history.add(groups, rewards)
        advantages, stats = group_advantages(rewards, std=algorithm.advantage_std, beside=beside)
        return [shaped(row, algorithm.advantage_mode) for row in advantages], stats

    def _rewards(
        self, groups: Sequence[RolloutGroup], scale: Literal["raw", "group"] | None = None
    ) -> list[list[float]]:
        """What advantages are computed from, or sums in another `scale`."""
        weights = {reward.key: reward.weight for reward in self._config.rewards}
        scores = [group.scores for group in groups]
        return training_rewards(scores, weights, scale or self._config.algorithm.reward_scale)

    def _split(
        self,
        groups: Sequence[RolloutGroup],
        advantages: Sequence[Sequence[float]],
        kl_weights: Sequence[Sequence[float]],
        step: int,
    ) -> TrainBatch:
        config = self._config
        return make_train_batch(
            groups,
            advantages,
            kl_weights,
            step=step,
            seed=config.seed,
            num_ranks=config.learner.num_ranks,
            micro_batch_size=config.learner.micro_batch_size,
        )

    def _streamed(self, accumulated: Collection[str], stats: Mapping[str, float]) -> Streamed | None:
        """How the advantages of a batch follow from those of its parts; None if one was clipped since."""
        group_ids = tuple(sorted(accumulated))
        if self._config.algorithm.advantage_std == "group":
            return Streamed(group_ids, 1.0)
        if stats["streaming/clipped"]:
            return None
        return Streamed(group_ids, 1 / (stats["advantage/reward_std"] + STD_EPS))

    def _kept(self, advantages: Sequence[Sequence[float]]) -> list[int]:
        """Groups that are trained on. A step never shrinks to nothing: if all are equal, all stay."""
        everything = list(range(len(advantages)))
        if not self._config.algorithm.skip_equal_groups:
            return everything
        return [i for i in everything if any(a != 0 for a in advantages[i])] or everything
