"""Which prompt and which seeds a group gets."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.data.group_sampler import GroupSampler, rollout_seed

PROMPTS = [f"prompt {i}" for i in range(20)]


@given(num_prompts=st.integers(1, 30), seed=st.integers(0, 2**31), pass_number=st.integers(0, 1000))
def test_every_prompt_comes_once_a_pass(num_prompts: int, seed: int, pass_number: int) -> None:
    """Prompts drawn with repetition leave some out for a long time."""
    prompts = [f"prompt {i}" for i in range(num_prompts)]
    sampler = GroupSampler(prompts, seed)
    first = pass_number * num_prompts
    assert sorted(sampler.prompt(first + i) for i in range(num_prompts)) == sorted(prompts)


def test_a_prompt_listed_twice_comes_twice_a_pass() -> None:
    """A prompt is given more weight by listing it again."""
    sampler = GroupSampler(["a", "b", "a"], 0)
    assert Counter(sampler.prompt(i) for i in range(3)) == {"a": 2, "b": 1}


def test_passes_have_different_orders() -> None:
    """Batches would always hold the same prompts together."""
    sampler = GroupSampler(PROMPTS, 0)
    orders = {tuple(sampler.prompt(20 * p + i) for i in range(20)) for p in range(10)}
    assert len(orders) == 10


def test_the_prompt_depends_on_seed_and_number_alone() -> None:
    """A resumed run starts in the middle, and redone work comes in another order."""
    in_order = [GroupSampler(PROMPTS, 3).prompt(number) for number in range(100)]
    sampler = GroupSampler(PROMPTS, 3)
    assert [sampler.prompt(number) for number in reversed(range(100))] == in_order[::-1]
    assert GroupSampler(PROMPTS, 3).prompt(87) == in_order[87]


def test_runs_with_different_seeds_see_different_orders() -> None:
    """Runs that are to be averaged must not share their luck."""
    orders = {tuple(GroupSampler(PROMPTS, seed).prompt(i) for i in range(20)) for seed in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize(
    ("numbers", "digest"),
    [
        ((0, 0, 0, 0), 0x342868ED9339AFB1),  # printf 0/0/0/0 | sha256sum | cut -c1-16
        ((0, 0, 0, 1), 0x2412C882E8C0ACBF),
        ((7, 12, 3, 5), 0x48B3C7E9BE13F3B6),
    ],
)
def test_a_rollout_seed_is_the_first_63_bits_of_a_sha256(
    numbers: tuple[int, int, int, int], digest: int
) -> None:
    """Seeds that change with the Python version or process make no run repeatable."""
    assert rollout_seed(*numbers) == digest // 2


def test_rollout_seeds_are_distinct_and_fit_63_bits() -> None:
    """Two rollouts of one group with one seed are the same video."""
    numbers = list(product(range(5), range(12), range(12), range(12)))
    seeds = {rollout_seed(*each) for each in numbers}
    assert len(seeds) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rollout_seed(1, 11, 0, 0) != rollout_seed(11, 1, 0, 0) != rollout_seed(1, 1, 10, 0)
