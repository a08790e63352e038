"""The bookkeeping that bounds staleness and accounts for every group."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe_ray.rollout_buffer import RolloutBuffer
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores


def group(number: int, step: int, incarnation: int = 0) -> RolloutGroup:
    version = PolicyVersion(incarnation, step)
    rollouts = tuple(Rollout(f"g{number}", i, "p", i, version, "rollout-0", None, ()) for i in range(2))
    return RolloutGroup(f"g{number}", number, "p", rollouts, (Scores({"a": 0.0}), Scores({"a": 1.0})))


def dispatch_all(buffer: RolloutBuffer, last_step: int = 100) -> list[int]:
    numbers = []
    while buffer.may_dispatch(last_step):
        numbers.append(buffer.dispatch())
    return numbers


def test_without_staleness_only_the_groups_of_the_next_step_may_start() -> None:
    """Guards the synchronous algorithm: a group of step 1 must not be sampled by policy 0."""
    buffer = RolloutBuffer(num_groups=3, max_policy_age=0)
    assert dispatch_all(buffer) == [0, 1, 2]
    for number in (2, 0, 1):
        assert buffer.cut() is None
        buffer.ready(group(number, 0))
    batch = buffer.cut()
    assert batch is not None
    assert [g.number for g in batch] == [0, 1, 2]
    assert not buffer.may_dispatch(100), "the slots are freed by the publish, not by the cut"
    buffer.trained(batch, PolicyVersion(0, 1))
    assert dispatch_all(buffer) == [3, 4, 5]
    assert buffer.ages_trained == {0: 6}


def test_policy_age_two_allows_three_steps_of_groups_in_flight() -> None:
    """Guards the slot bound (max_policy_age + 1) * num_groups."""
    buffer = RolloutBuffer(num_groups=2, max_policy_age=2)
    assert dispatch_all(buffer) == [0, 1, 2, 3, 4, 5]


def test_nothing_starts_for_steps_after_the_last() -> None:
    """Guards against rollouts that no step will ever train on."""
    buffer = RolloutBuffer(num_groups=2, max_policy_age=5)
    assert dispatch_all(buffer, last_step=2) == [0, 1, 2, 3]


def test_a_dropped_group_is_refilled() -> None:
    """Guards against a step that waits for ever, or shrinks, after a failure."""
    buffer = RolloutBuffer(num_groups=2, max_policy_age=0)
    dispatch_all(buffer)
    buffer.drop(0, "DataFailure")
    assert dispatch_all(buffer) == [2]
    assert buffer.drops == {"DataFailure": 1}


def test_groups_older_than_the_bound_are_dropped_and_never_cut() -> None:
    """Guards the promise that older than max_policy_age is never trained on."""
    buffer = RolloutBuffer(num_groups=1, max_policy_age=1, version=PolicyVersion(0, 3))
    buffer.next_number = 3
    for number, made_by in zip(dispatch_all(buffer), (1, 2), strict=True):
        buffer.ready(group(number, made_by))
    batch = buffer.cut()
    assert batch is not None
    assert [g.oldest_version.step for g in batch] == [2]
    assert buffer.drops == {"stale": 1}


def test_work_of_an_earlier_incarnation_is_dropped() -> None:
    """Guards against training on rollouts of steps that were lost in a crash."""
    buffer = RolloutBuffer(num_groups=1, max_policy_age=3, version=PolicyVersion(1, 1))
    buffer.next_number = 1
    dispatch_all(buffer)
    buffer.ready(group(1, 1, incarnation=0))
    assert buffer.cut() is None
    assert buffer.drops == {"stale": 1}


def test_a_resumed_run_does_what_was_open_and_nothing_twice() -> None:
    """Prompts in flight at the save are skipped, or groups trained or dropped before it are done again;
    and drops of the first part that still count would let a run exceed its slots."""
    buffer = RolloutBuffer(num_groups=2, max_policy_age=1)
    assert dispatch_all(buffer) == [0, 1, 2, 3]
    buffer.drop(2, "DataFailure")
    buffer.ready(group(0, 0))
    buffer.ready(group(3, 0))
    batch = buffer.cut()
    assert batch is not None
    buffer.trained(batch, PolicyVersion(0, 1))
    assert dispatch_all(buffer) == [4, 5, 6], "1 is still in flight: four slots"
    state = json.loads(json.dumps(buffer.state()))
    resumed = RolloutBuffer(num_groups=2, max_policy_age=1, version=PolicyVersion(1, 1))
    resumed.resume(state)
    assert dispatch_all(resumed) == [1, 4, 5, 6]
    assert resumed.num_dropped == 1
    assert resumed.state()["next_number"] == 1


def test_a_lost_group_goes_back_in_flight_and_the_others_of_its_batch_stay_ready() -> None:
    """Its number would be gone, and its seeds with it, or the rest of the batch be made again, too."""
    buffer = RolloutBuffer(num_groups=3, max_policy_age=0)
    for number in dispatch_all(buffer):
        buffer.ready(group(number, 0))
    assert buffer.cut() is not None
    assert not buffer.may_dispatch(100), "a batch under way holds its slots"
    buffer.give_back()
    buffer.lost(0)
    buffer.lost(2)
    assert (buffer.num_in_flight, buffer.num_ready) == (2, 1)
    assert not buffer.may_dispatch(100)
    for number in (0, 2):
        buffer.ready(group(number, 0))
    batch = buffer.cut()
    assert batch is not None
    assert [g.number for g in batch] == [0, 1, 2]
    assert buffer.redone == {0: 1, 2: 1}


@settings(max_examples=200, deadline=None)
@given(
    num_groups=st.integers(1, 4),
    max_age=st.integers(0, 3),
    choices=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["ready", "drop", "train"])), max_size=80),
)
def test_every_dispatched_group_ends_once_and_slots_are_never_exceeded(
    num_groups: int, max_age: int, choices: list[tuple[int, str]]
) -> None:
    """Guards the ledger under any order of events: dispatched = in flight + ready + trained + dropped."""
    buffer = RolloutBuffer(num_groups, max_age)
    in_flight: dict[int, int] = {}
    num_trained = 0
    for pick, action in choices:
        for number in dispatch_all(buffer):
            in_flight[number] = buffer.version.step
        assert buffer.num_in_flight + buffer.num_ready <= (max_age + 1) * num_groups
        if action == "train":
            batch = buffer.cut()
            if batch is not None:
                assert all(buffer.version.step - g.oldest_version.step <= max_age for g in batch)
                num_trained += len(batch)
                buffer.trained(batch, PolicyVersion(0, buffer.version.step + 1))
        elif in_flight:
            number = sorted(in_flight)[pick % len(in_flight)]
            made_by = in_flight.pop(number)
            buffer.ready(group(number, made_by)) if action == "ready" else buffer.drop(number, "x")
        assert buffer.next_number == (
            buffer.num_in_flight + buffer.num_ready + num_trained + buffer.num_dropped
        )
