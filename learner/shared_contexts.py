"""Samples of a group that go on from one history: each policy looks at it once in a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from astrolabe_ray.models.wan.kv_cache import SharedPast
from astrolabe_ray.types import PolicyVersion, TrainSample
from learner.nft_step import Policy, SharedContext
from learner.payloads import Payloads


class SharedContexts:
    """Keeps the context of the group that was asked for last: a KV cache of one video for each policy."""

    def __init__(self, *, is_used: bool) -> None:
        """`is_used` must be False under ZeRO 3, where all ranks make the same forwards: one that has a
        context already would leave the others waiting for its part of the weights."""
        self._is_used = is_used
        self._history: object = None  # the newest group's frames, as they were sent
        self._made_for: tuple[PolicyVersion, PolicyVersion, str] | None = None
        self._context: SharedContext | None = None

    def of(
        self, samples: Sequence[TrainSample], payloads: Payloads, version: PolicyVersion
    ) -> SharedContext | None:
        """That of a microbatch in the step from `version`; None if its samples do not share one."""
        histories = [payloads[sample.rollout_id][0] for sample in samples]
        first = samples[0]
        is_shared = first.prefix is not None and all(
            history is histories[0] and sample.prompt == first.prompt
            for history, sample in zip(histories, samples, strict=True)
        )
        if not (self._is_used and is_shared):
            self.forget()
            return None
        made_for = (version, first.policy_version, first.prompt)
        if self._history is not histories[0] or self._made_for != made_for:
            self._history, self._made_for = histories[0], made_for
            pasts: defaultdict[Policy, SharedPast] = defaultdict(SharedPast)
            self._context = pasts
        return self._context

    def forget(self) -> None:
        """Give the memory back."""
        self._history = self._made_for = self._context = None
