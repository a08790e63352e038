"""`report`: the page of a run, again."""

from __future__ import annotations

from pathlib import Path

import typer

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.page import build_report
from astrolabe_ray.report.run_dir import RunDir


def report(folder: Path) -> None:
    """Write the page from the files in `folder`. Raises ConfigError if it is not the folder of a run."""
    run_dir = RunDir(folder)
    if not run_dir.config.is_file():
        raise ConfigError(f"{folder} is not the folder of a run: it has no {run_dir.config.name}")
    typer.echo(f"Report: {build_report(run_dir)}")
