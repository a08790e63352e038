"""How many actors to have, and how many deaths to accept. Numbers only; no clock of its own."""

from __future__ import annotations

from collections import deque

from astrolabe_ray.errors import InfraFailure

GROW_AFTER_S = 10.0
"""Requests must have waited without a break for so long before an actor is added."""
SHRINK_AFTER_S = 120.0
"""Somebody must have idled beside others at work for so long before an actor is let go."""
WINDOW_S = 3600.0
PATIENCE_S = 1800.0
"""Nobody at work and no replacement for so long: nobody will come. A try may take minutes, so counting tries
would end nothing."""


class ScalingPolicy:
    """One actor more when requests keep waiting, one fewer when an actor keeps idling beside busy ones.

    Time in which everybody idles counts neither way: that is the learner's turn, and the next step
    will need all of them again. A decision starts both clocks anew, and none falls while an actor is
    on its way, so the number does not swing.
    """

    def __init__(self, minimum: int, maximum: int) -> None:
        self.minimum, self.maximum = minimum, maximum
        self._pressed_s = 0.0
        self._spare_s = 0.0

    def change(self, elapsed_s: float, *, waiting: int, idle: int, busy: int, starting: int) -> int:
        """+1, 0 or -1 actors, given what was seen for the last `elapsed_s` seconds."""
        if waiting or not idle:
            self._spare_s = 0.0
        elif busy:
            self._spare_s += elapsed_s
        self._pressed_s = self._pressed_s + elapsed_s if waiting else 0.0
        if starting:
            self._pressed_s = self._spare_s = 0.0
        size = idle + busy
        if self._pressed_s >= GROW_AFTER_S and size < self.maximum:
            step = 1
        elif self._spare_s >= SHRINK_AFTER_S and size > self.minimum:
            step = -1
        else:
            return 0
        self._pressed_s = self._spare_s = 0.0
        return step


class ReplacementBudget:
    """At most `limit` replacements within an hour; more is a fault that replacing won't mend.

    `whom` is what messages call them, e.g. "rollout actors".
    """

    def __init__(self, limit: int, whom: str) -> None:
        self.limit, self.whom = limit, whom
        self._times_s: deque[float] = deque()

    def spend(self, now_s: float, reason: object) -> None:
        """Note one more. Raises InfraFailure with `reason`, the last one, when the budget is used up."""
        while self._times_s and self._times_s[0] <= now_s - WINDOW_S:
            self._times_s.popleft()
        if len(self._times_s) >= self.limit:
            raise InfraFailure(
                f"{self.limit} {self.whom} were replaced within an hour; the last failure was: {reason}. "
                "Look for its cause in their logs (Ray dashboard), then go on from what was saved."
            )
        self._times_s.append(now_s)

    def require_patience(self, deserted_s: float, reason: object) -> None:
        """Raises InfraFailure with `reason`, why the last try failed, when all are gone for too long."""
        if deserted_s >= PATIENCE_S:
            raise InfraFailure(
                f"all {self.whom} are gone, and for {deserted_s:.0f} s no other could be started; the last "
                f"failure was: {reason}. Bring the nodes back, then go on from what was saved."
            )
