"""Which groups may start, which are ready, and what became of each one. Integers only, no waiting.

Every dispatched group ends in exactly one of two states, trained or dropped. The slots
(`(max_policy_age + 1) * num_groups`) bound what is in flight, ready or being trained on; a slot is freed
when its group was trained *and* the new version published, or when it was dropped (then it is refilled).
A group whose payloads were lost goes back to in flight and keeps its number, and with it its seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from astrolabe_ray.types import PolicyVersion, RolloutGroup


@dataclass
class RolloutBuffer:
    """Ledger of the groups of a run.

    num_groups: groups one step trains on. max_policy_age: steps a group's policy may be behind.
    """

    num_groups: int
    max_policy_age: int
    version: PolicyVersion = PolicyVersion()  # newest published
    next_number: int = 0  # dispatch number of the next group
    num_dropped: int = 0
    drops: Counter[str] = field(default_factory=Counter)  # by cause
    redone: Counter[int] = field(default_factory=Counter)  # number -> times that its payloads were lost
    ages_trained: Counter[int] = field(default_factory=Counter)  # policy age -> rollouts
    _in_flight: set[int] = field(default_factory=set)
    _ready: dict[int, RolloutGroup] = field(default_factory=dict)
    _in_training: dict[int, RolloutGroup] = field(default_factory=dict)
    _finished: set[int] = field(default_factory=set)  # trained or dropped

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def oldest_in_flight(self) -> int | None:
        return min(self._in_flight, default=None)

    def where(self) -> str:
        """The stage and the oldest item, for who looks into a run that stands still."""
        return (
            f"at step {self.version.step}: {self.num_in_flight} groups in flight (oldest is number "
            f"{self.oldest_in_flight}), {self.num_ready} of {self.num_groups} ready"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run must know: it starts before everything that was dispatched and not finished,
        and leaves out what was finished after that."""
        open_ones = self._in_flight | self._ready.keys() | self._in_training.keys()
        first_open = min(open_ones, default=self.next_number)
        self._finished = {number for number in self._finished if number > first_open}
        return {
            "next_number": first_open,
            "finished": sorted(self._finished),
            "num_dropped": self.num_dropped,
            "drops": dict(self.drops),
            "redone": {str(number): times for number, times in self.redone.items()},
            "ages_trained": {str(age): rollouts for age, rollouts in self.ages_trained.items()},
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was saved. Checkpoints of earlier versions knew no finished numbers, and no
        causes, losses and ages; of the first release only the step is known."""
        if "first_release_step" in state:
            self.next_number = state["first_release_step"] * self.num_groups
            return
        self.next_number, self.num_dropped = state["next_number"], state["num_dropped"]
        self._finished = set(state.get("finished", ()))
        self.drops = Counter(state.get("drops", {}))
        self.redone = Counter({int(number): times for number, times in state.get("redone", {}).items()})
        self.ages_trained = Counter({int(age): n for age, n in state.get("ages_trained", {}).items()})
        self._skip_finished()

    def next_life(self, state: Mapping[str, Any]) -> RolloutBuffer:
        """One that goes on where `state` was saved; what was in flight, ready or counted here since then
        belongs to lost steps."""
        new = RolloutBuffer(self.num_groups, self.max_policy_age)
        new.resume(state)
        return new

    def may_dispatch(self, last_step: int) -> bool:
        """The next group is for the step that all groups before it leave it for, and that step may be at
        most max_policy_age ahead of the steps trained (drops refunded).

        Nothing is started for steps at or past `last_step`.
        """
        unfinished = len(self._in_flight) + len(self._ready) + len(self._in_training)
        step_of_next = self.version.step + unfinished // self.num_groups
        return step_of_next <= self.version.step + self.max_policy_age and step_of_next < last_step

    def dispatch(self) -> int:
        """Take the next dispatch number."""
        number = self.next_number
        self.next_number += 1
        self._skip_finished()
        self._in_flight.add(number)
        return number

    def ready(self, group: RolloutGroup) -> None:
        """A dispatched group came back complete and scored."""
        self._in_flight.remove(group.number)
        self._ready[group.number] = group

    def drop(self, number: int, cause: str) -> None:
        """A dispatched or ready group will never be trained on; its slot is refunded."""
        if number in self._in_flight:
            self._in_flight.remove(number)
        else:
            del self._ready[number]
        self._finished.add(number)
        self.num_dropped += 1
        self.drops[cause] += 1

    def give_back(self) -> None:
        """The batch that was cut could not be trained on: its groups are ready again."""
        self._ready |= self._in_training
        self._in_training = {}

    def lost(self, number: int) -> None:
        """The payloads of a dispatched or ready group are gone: it is in flight once more."""
        self._ready.pop(number, None)
        self._in_flight.add(number)
        self.redone[number] += 1

    def age(self, version: PolicyVersion) -> int:
        """Steps between a rollout's policy and the newest published one."""
        return self.version.step - version.step

    def sweep(self) -> list[RolloutGroup]:
        """Drop and return the ready groups that are too old or belong to steps that were lost."""
        stale = [
            group
            for group in self._ready.values()
            if self.age(group.oldest_version) > self.max_policy_age
            or group.oldest_version.incarnation != self.version.incarnation
        ]
        for group in stale:
            self.drop(group.number, "stale")
        return stale

    def cut(self) -> list[RolloutGroup] | None:
        """The batch of the next step, in dispatch order, or None while too few groups are ready.

        Sweeping first is what guarantees the staleness bound; the admission rule makes it rare.
        """
        self.sweep()
        if len(self._ready) < self.num_groups:
            return None
        self._in_training = {n: self._ready.pop(n) for n in sorted(self._ready)[: self.num_groups]}
        return list(self._in_training.values())

    def next_in_order(self) -> list[RolloutGroup]:
        """Ready groups in dispatch order, up to the first that is in flight. None of them is stale."""
        self.sweep()
        end = self.next_number if self.oldest_in_flight is None else self.oldest_in_flight
        return [self._ready[number] for number in sorted(self._ready) if number < end]

    def trained(self, groups: list[RolloutGroup], version: PolicyVersion) -> None:
        """`groups` were trained on and `version`, their result, is published: free their slots."""
        for group in groups:
            for rollout in group.rollouts:
                self.ages_trained[self.age(rollout.policy_version)] += 1
        self._finished |= self._in_training.keys()
        self._in_training = {}
        self.version = version

    def _skip_finished(self) -> None:
        while self.next_number in self._finished:
            self.next_number += 1
