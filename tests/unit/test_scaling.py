from __future__ import annotations

import pytest

from actors.scaling import GROW_AFTER_S, SHRINK_AFTER_S, WINDOW_S, ReplacementBudget, ScalingPolicy
from astrolabe_ray.errors import InfraFailure


def changes(policy: ScalingPolicy, seconds: float, **seen: int) -> list[int]:
    seen = {"waiting": 0, "idle": 0, "busy": 0, "starting": 0} | seen
    return [policy.change(1.0, **seen) for _ in range(int(seconds))]


def test_an_actor_is_added_only_after_requests_waited_long_enough_without_a_break() -> None:
    """Growing at the first queued request: every step begins with a queue."""
    policy = ScalingPolicy(1, 3)
    assert not any(changes(policy, GROW_AFTER_S - 1, waiting=4, busy=1))
    assert changes(policy, 1, busy=1) == [0]  # the queue was empty once: the clock starts anew
    assert not any(changes(policy, GROW_AFTER_S - 1, waiting=4, busy=1))
    assert changes(policy, 1, waiting=4, busy=1) == [1]


def test_nothing_is_decided_while_an_actor_is_on_its_way() -> None:
    """A storm of new actors: the queue does not shrink until the first one has loaded its models."""
    policy = ScalingPolicy(1, 9)
    assert not any(changes(policy, 10 * GROW_AFTER_S, waiting=4, busy=1, starting=1))


def test_growth_stops_at_the_maximum() -> None:
    assert not any(changes(ScalingPolicy(1, 2), 10 * GROW_AFTER_S, waiting=9, busy=2))


def test_an_actor_that_idles_beside_busy_ones_is_let_go() -> None:
    policy = ScalingPolicy(1, 3)
    seen = changes(policy, SHRINK_AFTER_S, idle=1, busy=2)
    assert seen[-1] == -1
    assert not any(seen[:-1])


def test_time_in_which_everybody_idles_does_not_count() -> None:
    """All actors being dismissed during a long train step, to be loaded again right after it."""
    policy = ScalingPolicy(1, 3)
    assert not any(changes(policy, 10 * SHRINK_AFTER_S, idle=3))


def test_the_tail_of_each_step_does_not_add_up_over_bursts_that_need_everybody() -> None:
    """An actor that idles for the last seconds of every step being dismissed in the end."""
    policy = ScalingPolicy(1, 3)
    for _ in range(10):
        assert not any(changes(policy, 5, waiting=2, busy=3))
        assert not any(changes(policy, SHRINK_AFTER_S / 2, idle=1, busy=2))
        assert not any(changes(policy, 60, idle=3))


def test_shrinking_stops_at_the_minimum() -> None:
    assert not any(changes(ScalingPolicy(3, 5), 10 * SHRINK_AFTER_S, idle=1, busy=2))


def test_more_replacements_than_the_budget_name_the_last_cause() -> None:
    """Replacing for ever what a replacement cannot mend."""
    budget = ReplacementBudget(2, "rollout actors")
    budget.spend(0.0, "first")
    budget.spend(1.0, "second")
    with pytest.raises(InfraFailure, match=r"2 rollout actors .* the last failure was: third"):
        budget.spend(2.0, "third")
    budget.spend(WINDOW_S, "an hour after the first one")  # only the second one counts still
