"""Errors that people see. Every message says what is wrong, where, and what would be right.

All of them survive pickling, because they cross process boundaries inside Ray.
"""

from __future__ import annotations


class AstrolabeError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(AstrolabeError):
    """The user asked for something that can't be done; ends the program with exit code 2."""


class InfraFailure(AstrolabeError):
    """A process, node or connection failed; the same work may succeed elsewhere."""


class DataFailure(AstrolabeError):
    """This input can't be processed (for example a reward that is not a number); its group is dropped."""


class WeightMismatch(AstrolabeError):
    """A receiver of weights does not hold what the learner published."""


class RunStalled(AstrolabeError):
    """Nothing moved while work remained; the message names the stage and the oldest item."""
