"""Counts updates that were skipped because their gradient was not finite."""

from __future__ import annotations

from dataclasses import dataclass

from astrolabe_ray.errors import AstrolabeError

MAX_IN_A_ROW = 3


@dataclass
class SkippedUpdates:
    """`total` of the run, and `in_a_row` up to now."""

    total: int = 0
    in_a_row: int = 0

    def count(self, grad_norm: float | None, loss: float) -> None:
        """`grad_norm` None: the update was skipped. Raises AstrolabeError at the third in a row, which is no
        accident."""
        if grad_norm is not None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            raise AstrolabeError(
                f"the gradient was not finite in {self.in_a_row} steps in a row (loss {loss}). Lower "
                "learner.lr, or resume from an earlier checkpoint, and look at the rewards."
            )
