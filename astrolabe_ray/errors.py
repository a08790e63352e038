"""Errors that people see. Every message says what is wrong, where, and what would be right.

All of them survive pickling, because they cross process boundaries inside Ray.
"""

from __future__ import annotations

from collections.abc import Sequence


class AstrolabeError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(AstrolabeError):
    """The user asked for something that can't be done; ends the program with exit code 2."""


class InfraFailure(AstrolabeError):
    """A process, node or connection failed; the same work may succeed elsewhere."""


class ServerBusy(InfraFailure):
    """A server takes no more work of this client now; nothing was moved, ask again later."""


class LearnerLost(InfraFailure):
    """The ranks of the learner are gone, and with them all steps since the last checkpoint."""


class PayloadsLost(InfraFailure):
    """Finished frames or latents are gone with their node; they can be made again, but not read again.

    `rollout_ids` says whose they were, if whoever noticed knows it. Example: `("train-3/0",)`.
    """

    def __init__(self, message: str, rollout_ids: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(rollout_ids))  # what a pickle builds it from
        self.rollout_ids = tuple(rollout_ids)

    def __str__(self) -> str:
        return self.args[0]


class DataFailure(AstrolabeError):
    """This input can't be processed (for example a reward that is not a number); its group is dropped."""


class WeightMismatch(AstrolabeError):
    """A receiver of weights does not hold what the learner published."""


class RunStalled(AstrolabeError):
    """Nothing moved while work remained; the message names the stage and the oldest item."""
