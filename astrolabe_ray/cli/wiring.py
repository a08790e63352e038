"""What the commands need from the roles, handed over by launch.py, the only file that imports roles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from astrolabe_ray.config.schema import RewardConfig, RunConfig


class RewardServers(Protocol):
    """The reward servers of a cluster as an operator sees them."""

    def up(self, rewards: Sequence[RewardConfig]) -> list[str]:
        """Start what is not running yet; a line about each server."""
        ...

    def status(self) -> list[str]:
        """A line about each running server."""
        ...

    def down(self) -> list[str]:
        """Stop them all; a line about each."""
        ...


@dataclass(frozen=True)
class Wiring:
    """Doors to the roles. Each one imports its role when it is opened, so that errors come fast."""

    scorer_keys: Callable[[], Collection[str]]
    """Keys that a RewardConfig may name."""
    checkpoint_problem: Callable[[Path], str | None]
    """Why a checkpoint folder can't be used, or None."""
    latest_checkpoint: Callable[[Path], Path | None]
    """Newest valid checkpoint in a folder of them."""
    make_roles: Callable[[RunConfig], Any]
    """The roles of a run (`astrolabe_ray.run.Roles`), not started. Needs a connection to Ray."""
    reward_servers: Callable[[RunConfig], RewardServers]
    """Needs a connection to Ray."""
