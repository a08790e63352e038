"""How the rollouts of a step are dealt to the learner ranks."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe_ray.batching import make_train_batch, slices
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
    everything = [sample for rank in batch.ranks for micro_batch in rank for sample in micro_batch]
    dealt = [sample for sample in everything if sample.weight]
    expected = {f"g{g}/{i}": float(10 * g + i) for g in range(len(groups)) for i in range(group_size)}
    assert {sample.rollout_id: sample.advantage for sample in dealt} == expected
    assert all(sample.kl_weight == sample.advantage / 2 for sample in dealt)
    assert len(dealt) == batch.num_samples == len(expected)
    for together in zip(*batch.ranks, strict=True):
        assert len({(s.policy_version, s.window_start) for s in chain(*together)}) == 1
        assert all(1 <= len(micro_batch) <= micro_batch_size for micro_batch in together)
        assert any(sample.weight for sample in chain(*together))


def test_ranks_that_find_no_sample_of_a_version_get_a_copy_without_weight() -> None:
    """Under ZeRO 3 all ranks pass the same policies together, or none of them goes on."""
    batch = make_train_batch(
        groups_of([0, 0, 2], 1),
        [[1.0], [2.0], [3.0]],
        [[1.0]] * 3,
        step=2,
        seed=0,
        num_ranks=2,
        micro_batch_size=4,
    )
    for rank, weight in zip(batch.ranks, (1.0, 0.0), strict=True):
        assert [(s.rollout_id, s.weight) for s in chain(*rank)] == [(f"g{i}/0", weight) for i in range(3)]
    assert batch.num_samples == 3


def test_slices_cover_a_group_in_order() -> None:
    """Guards the indices that carry the seeds."""
    assert slices(5, 2) == [(0, 1), (2, 3), (4,)]
