"""Groups with advantages -> microbatches for each learner rank. Pure integers and lists.

Each rank gets the same number of microbatches, and at each place all ranks have one policy version and
one window: ZeRO reduces gradients after every backward and ZeRO 3 gathers weights in every forward, so a
rank that does something else would leave the others waiting for ever. The numbers of samples may differ;
the learner weights each sample by 1 / num_samples of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

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
            prefix=r.prefix,
        )
        for group, *rows in zip(groups, advantages, kl_weights, strict=True)
        for r, advantage, kl_weight in zip(group.rollouts, *rows, strict=True)
    ]
    ranks: list[list[MicroBatch]] = [[] for _ in range(num_ranks)]
    for _, run in groupby(sorted(samples, key=_forward), key=_forward):  # stable
        for number, micro_batch in enumerate(split(list(run), micro_batch_size, num_ranks)):
            ranks[number % num_ranks].append(micro_batch)
    return TrainBatch(step=step, seed=seed, ranks=tuple(map(tuple, ranks)), num_samples=len(samples))


def _forward(sample: TrainSample) -> tuple[PolicyVersion, int]:
    """What the samples of one forward have in common."""
    return sample.policy_version, sample.window_start


def split(samples: Sequence[TrainSample], micro_batch_size: int, num_ranks: int) -> list[MicroBatch]:
    """Microbatches of at most `micro_batch_size` samples, a multiple of `num_ranks` in number.

    The largest are halved until the number fits, so that the ranks' shares stay close. Where even single
    samples are too few, copies of one that weigh nothing fill the gap.
    """
    starts = range(0, len(samples), micro_batch_size)
    pieces = [tuple(samples[start : start + micro_batch_size]) for start in starts]
    while len(pieces) % num_ranks and len(pieces) < len(samples):
        largest = max(range(len(pieces)), key=lambda i: len(pieces[i]))
        piece = pieces.pop(largest)
        half = (len(piece) + 1) // 2
        pieces += [piece[:half], piece[half:]]
    pieces.sort(key=len, reverse=True)
    return pieces + [(replace(samples[0], weight=0.0),)] * (-len(pieces) % num_ranks)


def slices(group_size: int, batch_size: int) -> list[tuple[int, ...]]:
    """Indices of a group's rollouts, cut into requests of at most `batch_size`."""
    return [
        tuple(range(first, min(first + batch_size, group_size))) for first in range(0, group_size, batch_size)
    ]
