"""`train`: check everything that can be checked, then connect, build the roles, run, and report."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

import typer

from astrolabe_ray.cli.inputs import check_files, check_log_dir, check_rewards, find_checkpoint
from astrolabe_ray.cli.summary import plan_lines
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig


def train(spec: str, overrides: Sequence[str], *, dry_run: bool, wiring: Wiring) -> None:
    """Run one training. Raises ConfigError, before any Ray actor starts, for what can't work."""
    config = load(spec, overrides)
    plan = make_plan(config)
    check_rewards(config.rewards, wiring.scorer_keys())
    check_log_dir(config.logging)
    resume_from = find_checkpoint(
        config.checkpoint, earlier_checkpoints(config), wiring.checkpoint_problem, wiring.latest_checkpoint
    )
    check_files(config)
    typer.echo("\n".join(plan_lines(config, plan)))
    if dry_run:
        typer.echo("Everything is there. Nothing was started.")
        return
    from astrolabe_ray.cli.session import run_on_ray  # loads Ray

    run_on_ray(config, plan, wiring, resume_from)


def earlier_checkpoints(config: RunConfig) -> list[Path]:
    """Checkpoint folders of runs with this name, newest first."""
    folder, year = Path(config.logging.log_dir) / config.model.base_model, "[0-9]" * 4
    runs = folder.glob(f"{escape(config.name)}_{year}.*/checkpoints")  # not those of a run NAME_2
    return sorted(runs, reverse=True)  # their names end in the time of their start
