"""Groups with advantages -> microbatches for each learner rank. Pure integers and lists.

Each rank gets the same number of microbatches, because ZeRO reduces gradients after every backward:
a rank with one backward less would leave the others waiting for ever. The numbers of samples may
differ; the learner weights each sample by 1 / num_samples of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.types import PolicyVersion, RolloutGroup, TrainBatch, TrainSample

MicroBatch = tuple[TrainSample, ...]


def make_train_batch(
    groups: Sequence[RolloutGroup],
    advantages: Sequence[Sequence[float]],
    kl_weights: Sequence[Sequence[float]],
    *,
    step: int,
    seed: int,
    num_ranks: int,
    micro_batch_size: int,
) -> TrainBatch:
    """Split all rollouts of `groups` over the ranks.

    `advantages[g][i]` and `kl_weights[g][i]` belong to `groups[g].rollouts[i]`.

    Raises ConfigError when the ranks cannot have the same number of microbatches.
    """
    samples = [
        TrainSample(
            f"{group.group_id}/{r.index}",
            r.prompt,
            r.policy_version,
            r.latents,
            advantage,
            kl_weight,
            r.window_start,
        )
        for group, *rows in zip(groups, advantages, kl_weights, strict=True)
        for r, advantage, kl_weight in zip(group.rollouts, *rows, strict=True)
    ]
    if len(samples) % num_ranks:
        raise ConfigError(
            f"{len(samples)} rollouts per step do not split over {num_ranks} learner ranks: "
            "choose rollout.num_groups x rollout.group_size as a multiple of learner.num_ranks."
        )
    micro_batches = even_out(split(samples, micro_batch_size), num_ranks)
    ranks = tuple(tuple(micro_batches[rank::num_ranks]) for rank in range(num_ranks))
    return TrainBatch(step=step, seed=seed, ranks=ranks, num_samples=len(samples))


def split(samples: Sequence[TrainSample], micro_batch_size: int) -> list[MicroBatch]:
    """Microbatches of one policy version and one window each, at most `micro_batch_size` samples."""
    micro_batches: list[MicroBatch] = []
    for _, run in groupby(sorted(samples, key=_forward), key=_forward):  # stable
        members = list(run)
        micro_batches += [
            tuple(members[i : i + micro_batch_size]) for i in range(0, len(members), micro_batch_size)
        ]
    return micro_batches


def _forward(sample: TrainSample) -> tuple[PolicyVersion, int]:
    """What the samples of one forward have in common."""
    return sample.policy_version, sample.window_start


def even_out(micro_batches: list[MicroBatch], num_ranks: int) -> list[MicroBatch]:
    """Halve the largest microbatches until their number is a multiple of `num_ranks`.

    Always possible when the number of samples is one, too: at the latest when every piece holds one
    sample. Largest first, so that the ranks' shares stay close.
    """
    pieces = list(micro_batches)
    while len(pieces) % num_ranks:
        largest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        piece = pieces.pop(largest)
        half = (len(piece) + 1) // 2
        pieces += [piece[:half], piece[half:]]
    return sorted(pieces, key=len, reverse=True)


def slices(group_size: int, batch_size: int) -> list[tuple[int, ...]]:
    """Indices of a group's rollouts, cut into requests of at most `batch_size`."""
    return [
        tuple(range(first, min(first + batch_size, group_size))) for first in range(0, group_size, batch_size)
    ]
