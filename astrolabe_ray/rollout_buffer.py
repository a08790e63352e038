"""Which groups may start, which are ready, and what became of each one. Integers only, no waiting.

Every dispatched group ends in exactly one of two states, trained or dropped. The slots
(`(max_policy_age + 1) * num_groups`) bound what is in flight or ready; a slot is freed when its group
was trained *and* the new version published, or when it was dropped (then it is refilled).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

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
    num_dropped: int = 0  # refunded to the admission rule
    drops: Counter[str] = field(default_factory=Counter)  # by cause
    ages_trained: Counter[int] = field(default_factory=Counter)  # policy age -> rollouts
    _in_flight: set[int] = field(default_factory=set)
    _ready: dict[int, RolloutGroup] = field(default_factory=dict)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def num_ready(self) -> int:
        return len(self._ready)

    @property
    def oldest_in_flight(self) -> int | None:
        return min(self._in_flight, default=None)

    @property
    def resume_number(self) -> int:
        """Where a resumed run continues: before everything that was dispatched and not trained."""
        return min(self._in_flight | self._ready.keys(), default=self.next_number)

    def may_dispatch(self, last_step: int) -> bool:
        """Group n may start iff `n // num_groups <= trained steps + max_policy_age` (drops refunded).

        Nothing is started for steps at or past `last_step`.
        """
        step_of_next = (self.next_number - self.num_dropped) // self.num_groups
        return step_of_next <= self.version.step + self.max_policy_age and step_of_next < last_step

    def dispatch(self) -> int:
        """Take the next dispatch number."""
        number = self.next_number
        self.next_number += 1
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
        self.num_dropped += 1
        self.drops[cause] += 1

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
        return [self._ready.pop(number) for number in sorted(self._ready)[: self.num_groups]]

    def trained(self, groups: list[RolloutGroup], version: PolicyVersion) -> None:
        """`groups` were trained on and `version`, their result, is published: free their slots."""
        for group in groups:
            for rollout in group.rollouts:
                self.ages_trained[self.age(rollout.policy_version)] += 1
        self.version = version
