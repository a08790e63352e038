"""From the scores of a step's groups to what the learner trains on: rewards, advantages, KL weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from astrolabe_ray.algorithms.advantages import group_advantages
from astrolabe_ray.batching import make_train_batch
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.health.step_guards import pull
from astrolabe_ray.kl_selection import KlSelection
from astrolabe_ray.step_metrics import training_rewards
from astrolabe_ray.types import RolloutGroup, TrainBatch


@dataclass(frozen=True)
class StepBatch:
    """A batch, and the numbers that came up on the way to it."""

    batch: TrainBatch
    totals: list[list[float]]  # weighted sums of raw scores, by group and rollout
    metrics: dict[str, float]


def step_batch(
    groups: Sequence[RolloutGroup], config: RunConfig, kl_selection: KlSelection, step: int
) -> StepBatch:
    """What step `step` trains on. `kl_selection` moves on when it is told that this was trained on."""
    weights = {reward.key: reward.weight for reward in config.rewards}
    algorithm, scores = config.algorithm, [group.scores for group in groups]
    rewards = training_rewards(scores, weights, algorithm.reward_scale)
    advantages, advantage_stats = group_advantages(rewards, std=algorithm.advantage_std)
    kl_weights, kl_stats = kl_selection.weights(groups)
    health = {"health/pull": pull(advantages, adv_clip_max=algorithm.adv_clip_max)}
    batch = make_train_batch(
        groups,
        advantages,
        kl_weights,
        step=step,
        seed=config.seed,
        num_ranks=config.learner.num_ranks,
        micro_batch_size=config.learner.micro_batch_size,
    )
    return StepBatch(batch, training_rewards(scores, weights, "raw"), advantage_stats | kl_stats | health)
