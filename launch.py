"""Composition root: the only file that knows all roles. `python launch.py --help` says what it can do.

Heavy imports happen inside these functions, after everything that can be checked without them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from astrolabe_ray.cli.app import make_app
from astrolabe_ray.cli.wiring import RewardServers, Wiring
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import ConfigError

if TYPE_CHECKING:
    from astrolabe_ray.run import Roles


def main() -> None:
    """Run one command. Exits with 2 and one line for each mistake in the config."""
    try:
        make_app(WIRING)()
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


def scorer_keys() -> Collection[str]:
    from reward_servers.scorers import SCORERS

    return SCORERS.keys()


def checkpoint_problem(folder: Path) -> str | None:
    from learner.checkpoint import what_is_wrong

    return what_is_wrong(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    from learner.checkpoint import latest_valid

    return latest_valid(folder)


def make_roles(config: RunConfig) -> Roles:
    raise NotImplementedError


def reward_servers(config: RunConfig) -> RewardServers:
    raise NotImplementedError


WIRING = Wiring(
    scorer_keys=scorer_keys,
    checkpoint_problem=checkpoint_problem,
    latest_checkpoint=latest_checkpoint,
    make_roles=make_roles,
    reward_servers=reward_servers,
)

if __name__ == "__main__":
    main()
