"""GPUs go where they shorten the slowest stage."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.config.gpu_split import COSTS_1_3B, COSTS_14B, divide, server_costs, split_gpus
from astrolabe_ray.errors import ConfigError

HPSV3, MQ, TA = "video_hpsv3_local", "videoalign_mq_score", "videoalign_ta_score"


@pytest.mark.parametrize(
    ("num_gpus", "expected"),
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (8, (3, 2, 3)),
        (16, (6, 4, 6)),
        (24, (9, 7, 8)),
        (32, (12, 9, 11)),
        (48, (18, 13, 17)),
        (64, (24, 18, 22)),
    ],
)
def test_the_1_3b_split_is_the_table_computed_by_hand(num_gpus: int, expected: tuple[int, int, int]) -> None:
    """A stage with too few GPUs would set the pace of all others."""
    assert divide(num_gpus, (1334, 957, 1226)) == expected
    split = split_gpus(num_gpus, COSTS_1_3B, [HPSV3, MQ])
    reward_gpus = sum(share.num_replicas * share.num_gpus for share in split.servers.values())
    assert (split.num_actors, reward_gpus, split.num_ranks) == expected


def test_the_14b_split_follows_its_shares() -> None:
    """Scoring a 14B model's videos is a sixteenth of the work; two GPUs of eight would idle."""
    total = COSTS_14B.rollout + sum(server_costs([HPSV3, MQ]).values()) + COSTS_14B.learner
    assert COSTS_14B.rollout / total == pytest.approx(0.453, abs=5e-4)
    assert COSTS_14B.learner / total == pytest.approx(0.484, abs=5e-4)
    split = split_gpus(8, COSTS_14B, [HPSV3, MQ])
    # 3:1:4 waits for 7115 / 3 = 2372; 4:1:3 would wait for 7604 / 3 = 2535
    assert (split.num_actors, split.num_ranks) == (3, 4)


@given(st.integers(3, 14), st.tuples(*[st.floats(0.1, 1000)] * 3))
def test_no_other_division_has_a_faster_slowest_stage(num_units: int, costs: tuple[float, ...]) -> None:
    """Handing out units one by one must not end in a worse place than trying every division."""
    found = divide(num_units, costs)
    every = [n for n in product(range(1, num_units), repeat=3) if sum(n) == num_units]
    best = min(max(c / k for c, k in zip(costs, n, strict=True)) for n in every)
    assert sum(found) == num_units
    assert max(c / k for c, k in zip(costs, found, strict=True)) == pytest.approx(best)


def test_too_few_units_are_refused() -> None:
    """A stage without any would wait for ever."""
    with pytest.raises(ConfigError, match="2 GPUs can't be divided among 3 stages"):
        divide(2, (1, 1, 1))


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 4, 8, 16, 24, 48])
@pytest.mark.parametrize("keys", [[HPSV3], [MQ], [HPSV3, MQ], [HPSV3, TA], [HPSV3, MQ, TA]])
def test_every_split_uses_all_gpus_and_fits_on_whole_ones(num_gpus: int, keys: list[str]) -> None:
    """Parts of a GPU that add up but do not fit beside each other are never placed."""
    split = split_gpus(num_gpus, COSTS_1_3B, keys)
    parts = [split.gpus_per_actor] * split.num_actors + [split.gpus_per_rank] * split.num_ranks
    parts += [share.num_gpus for share in split.servers.values() for _ in range(share.num_replicas)]
    assert sum(parts) == pytest.approx(num_gpus)
    free = [1.0] * num_gpus
    for part in sorted(parts, reverse=True):
        place = next(i for i, room in enumerate(free) if room > part - 1e-6)
        free[place] -= part


def test_a_light_reward_takes_half_a_gpu_and_leaves_the_rest_to_the_heavy_one() -> None:
    """Motion quality is 1.3 % of HPSv3's work; a GPU of its own would idle."""
    heavy, light = split_gpus(8, COSTS_1_3B, [HPSV3, MQ]).servers.values()
    assert (heavy.num_replicas, heavy.num_gpus) == (3, 0.5)
    assert (light.num_replicas, light.num_gpus) == (1, 0.5)


def test_rewards_of_one_model_count_once_for_each_view() -> None:
    """Text alignment and RGB quality come from one forward, motion quality looks at gray frames."""
    assert server_costs([MQ, HPSV3, TA]) == {"videoreward": 2 * 13.1, "hpsv3": 973.3}
    assert server_costs([TA, "videoalign_vq_score"]) == {"videoreward": 13.1}
