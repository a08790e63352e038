"""The reference policy of the KL penalty: where training started, or one that follows in jumps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from astrolabe_ray.algorithms.lagging_reference import LaggingReference, after_step
from astrolabe_ray.algorithms.released_kl import released_after_step
from astrolabe_ray.config.schema import AlgorithmConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.types import TrainSample
from learner.engine import Engine
from learner.policies import ReferenceKind
from learner.process_group import sum_over_ranks


def reference_kind(algorithm: AlgorithmConfig) -> ReferenceKind:
    """Whether the reference follows the trained policy, or what it is for good."""
    return "lagging" if algorithm.kl_samples == "disagreeing" else algorithm.kl_reference


class Reference:
    """Knows when the adapter `reference` of `engine` is written to, and who needs its predictions."""

    def __init__(self, engine: Engine, algorithm: AlgorithmConfig) -> None:
        self._engine, self._algorithm = engine, algorithm
        self._moves = reference_kind(algorithm) == "lagging"
        self._state = LaggingReference(algorithm.reference_max_kl)

    def rows(self, micro_batches: Sequence[Sequence[TrainSample]]) -> list[list[int]]:
        """For each microbatch its samples whose distance to the reference is computed.

        None while the reference is the trained policy itself: the distance and its gradient are 0. Under
        ZeRO 3 all ranks must make the same forwards, since each one gathers weights: a rank that has
        nothing to compute where others have computes its first sample, whose weight is 0.
        """
        if self._algorithm.kl_coef == 0 or (self._moves and self._state.age == 0):
            return [[] for _ in micro_batches]
        rows = [[i for i, s in enumerate(samples) if s.kl_weight > 0] for samples in micro_batches]
        if self._engine.stage < 3:
            return rows
        needs = sum_over_ranks([float(len(own)) for own in rows])
        return [own or [0] if need else [] for own, need in zip(rows, needs, strict=True)]

    def after_step(self, kl: float, default: Tensor) -> dict[str, float]:
        """Set the reference to `default`, the trained policy after a step of penalty `kl`, if it is time.

        Returns what the step saw: the reference's age and its threshold, and refreshes up to now.
        """
        if not self._moves:
            return {}
        before, algorithm = self._state, self._algorithm
        max_age = algorithm.reference_max_age
        if algorithm.kl_rule == "release" and algorithm.kl_samples == "disagreeing":
            self._state, is_due = released_after_step(before, kl, max_age=max_age)
        else:
            self._state, is_due = after_step(
                before, kl, first_threshold=algorithm.reference_max_kl, max_age=max_age
            )
        if is_due:
            self._engine.write("reference", default)
        return {
            "kl/reference_age": float(before.age),
            "kl/reference_threshold": before.threshold,
            "kl/reference_refreshes": float(self._state.num_refreshes),
        }

    def saved(self) -> tuple[Tensor, LaggingReference] | None:
        """What a checkpoint keeps of it; None for a reference that stays."""
        return (self._engine.read("reference"), self._state) if self._moves else None

    def begun_with(self, default: Tensor) -> tuple[Tensor, LaggingReference] | None:
        """What `saved` would be right after training began with `default`."""
        return (default, LaggingReference(self._algorithm.reference_max_kl)) if self._moves else None

    def restore(self, saved: tuple[Tensor, LaggingReference] | None, directory: Path) -> None:
        """Inverse of `saved`. Raises ConfigError if the run of the checkpoint had another kind."""
        if (saved is not None) != self._moves:
            was, now = ("follows", "stays") if saved is not None else ("stays", "follows")
            way_out = "kl_reference=lagging" if saved is not None else "kl_reference=start (or base)"
            raise ConfigError(
                f"checkpoint {directory} was made with a reference policy that {was}, and this run's {now}. "
                f"Resume with --config.algorithm.{way_out}, or with the kl_samples of its config.json."
            )
        if saved is not None:
            flat, self._state = saved
            self._engine.write("reference", flat)
