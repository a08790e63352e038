"""`configs list` and `configs show`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import typer

from astrolabe_ray.cli.summary import plan_lines
from astrolabe_ray.config.loader import INSTALLED_CONFIGS, load, presets_in
from astrolabe_ray.config.overrides import describe
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.errors import ConfigError


def list_presets() -> None:
    """Print `FILE.py:PRESET  what it is`. Raises ConfigError where there are no config files."""
    folder = next((path for path in (Path("configs"), INSTALLED_CONFIGS) if path.is_dir()), None)
    if folder is None:
        raise ConfigError(f"no folder configs/ in {Path.cwd()}; go to the checkout")
    for file in sorted(folder.glob("*.py")):
        for name, preset in presets_in(file).items():
            summary = (inspect.getdoc(preset) or "").partition("\n")[0]
            typer.echo(f"{folder / file.name}:{name}  {summary}")


def show_preset(spec: str, overrides: Sequence[str]) -> None:
    """Print every option and the plan. Raises ConfigError for a config that can't run."""
    config = load(spec, overrides)
    plan = make_plan(config)
    typer.echo("\n".join(describe(config)))
    typer.echo("\n" + "\n".join(plan_lines(config, plan)))
