"""How the rollouts of a step are dealt to the learner ranks."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe_ray.batching import make_train_batch, slices
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores


def groups_of(versions: list[int], group_size: int) -> list[RolloutGroup]:
    groups = []
    for number, step in enumerate(versions):
        rollouts = tuple(
            Rollout(
                *(f"g{number}", i, "p", i, PolicyVersion(0, step), "a", f"latents-{number}-{i}", ()),
                window_start=3 * (number % 2),
            )
            for i in range(group_size)
        )
        groups.append(RolloutGroup(f"g{number}", number, "p", rollouts, (Scores({}),) * group_size))
    return groups


@settings(max_examples=200, deadline=None)
@given(
    versions=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    group_size=st.sampled_from([4, 8, 12]),
    num_ranks=st.sampled_from([1, 2, 4]),
    micro_batch_size=st.integers(1, 9),
)
def test_every_sample_lands_on_exactly_one_rank_with_equal_microbatch_counts(
    versions: list[int], group_size: int, num_ranks: int, micro_batch_size: int
) -> None:
    """Guards against lost samples, and against ranks that wait for ever in a ZeRO reduction."""
    groups = groups_of(versions, group_size)
    advantages = [[float(10 * g + i) for i in range(group_size)] for g in range(len(groups))]
    kl_weights = [[advantage / 2 for advantage in row] for row in advantages]
    batch = make_train_batch(
        groups, advantages, kl_weights, step=5, seed=1, num_ranks=num_ranks, micro_batch_size=micro_batch_size
    )
    dealt = [sample for rank in batch.ranks for micro_batch in rank for sample in micro_batch]
    expected = {f"g{g}/{i}": float(10 * g + i) for g in range(len(groups)) for i in range(group_size)}
    assert {sample.rollout_id: sample.advantage for sample in dealt} == expected
    assert all(sample.kl_weight == sample.advantage / 2 for sample in dealt)
    assert len(dealt) == batch.num_samples == len(expected)
    assert len({len(rank) for rank in batch.ranks}) == 1
    for micro_batch in chain(*batch.ranks):
        assert 1 <= len(micro_batch) <= micro_batch_size
        assert len({(sample.policy_version, sample.window_start) for sample in micro_batch}) == 1


def test_samples_that_do_not_split_over_the_ranks_are_refused() -> None:
    """Guards against a hang instead of an error."""
    with pytest.raises(ConfigError, match="3 rollouts per step do not split over 2 learner ranks"):
        make_train_batch(
            groups_of([0], 3), [[0.0] * 3], [[1.0] * 3], step=0, seed=0, num_ranks=2, micro_batch_size=4
        )


def test_slices_cover_a_group_in_order() -> None:
    """Guards the indices that carry the seeds."""
    assert slices(5, 2) == [(0, 1), (2, 3), (4,)]
