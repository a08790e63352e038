"""`train`: check everything that can be checked, then connect, build the roles, run, and report."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

import typer

from astrolabe_ray.cli.dry_run import print_dry_run
from astrolabe_ray.cli.inputs import check_log_dir, find_checkpoint, missing_inputs
from astrolabe_ray.cli.selection import selected
from astrolabe_ray.cli.summary import plan_lines
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import ConfigError


def train(spec: str, overrides: Sequence[str], *, small: bool, dry_run: bool, wiring: Wiring) -> None:
    """Run one training. Raises ConfigError, before any Ray actor starts, for what can't work."""
    config = selected(spec, overrides, small=small)
    plan = make_plan(config)
    missing = missing_inputs(config, wiring.reward_problems)
    resume_from = None
    try:
        check_log_dir(config.logging)
        resume_from = find_checkpoint(
            config.checkpoint,
            earlier_checkpoints(config),
        )
    except ConfigError as error:
        missing.append(str(error))
    if dry_run:
        print_dry_run(config, plan, missing)
        return
    if missing:
        raise ConfigError("\n".join(missing))
    typer.echo("\n".join(plan_lines(config, plan)))
    from astrolabe_ray.cli.session import run_on_ray  # loads Ray

    run_on_ray(config, plan, wiring, resume_from)


def earlier_checkpoints(config: RunConfig) -> list[Path]:
    """Checkpoint folders of runs with this name, newest first."""
    folder, year = Path(config.logging.log_dir) / config.model.base_model, "[0-9]" * 4
    runs = folder.glob(f"{escape(config.name)}_{year}.*/checkpoints")  # not those of a run NAME_2
    return sorted(runs, reverse=True)  # their names end in the time of their start
