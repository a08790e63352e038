"""`configs list`, `show`, `diff` and `schema`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from astrolabe_ray.cli.selection import selected
from astrolabe_ray.cli.summary import plan_lines
from astrolabe_ray.config.loader import INSTALLED_CONFIGS, Preset, load, presets_in
from astrolabe_ray.config.overrides import describe
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import ConfigError

PIPED_WIDTH = 240
"""Of a table that goes to a file or another program."""


def list_presets() -> None:
    """Print a table for each config file. Raises ConfigError where there are no config files."""
    folder = next((path for path in (Path("configs"), INSTALLED_CONFIGS) if path.is_dir()), None)
    if folder is None:
        raise ConfigError(f"no folder configs/ in {Path.cwd()}; go to the checkout")
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    for file in sorted(folder.glob("*.py")):
        console.print(preset_table(str(folder / file.name), presets_in(file)))


def preset_table(title: str, presets: dict[str, Preset]) -> Table:
    """A row for each preset: GPUs, base model, rewards with weights, and its own first line."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for name, justify in (("preset", "left"), ("GPUs", "right"), ("base model", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("rewards")
    table.add_column("what it is")
    for name, preset in presets.items():
        config = preset()
        rewards = ", ".join(f"{reward.weight:g} {reward.key}" for reward in config.rewards)
        summary = (inspect.getdoc(preset) or "").partition("\n")[0]
        gpus = f"{make_plan(config).num_gpus:g}"
        table.add_row(name, gpus, config.model.base_model, rewards, summary)
    return table


def show_preset(spec: str, overrides: Sequence[str], *, small: bool) -> None:
    """Print every option and the plan. Raises ConfigError for a config that can't run."""
    config = selected(spec, overrides, small=small)
    plan = make_plan(config)
    typer.echo("\n".join(describe(config)))
    typer.echo("\n" + "\n".join(plan_lines(config, plan)))


def diff_presets(first: str, second: str) -> None:
    """Print the options in which two presets differ, or that there is none."""
    lines = difference(load(first), load(second))
    typer.echo("\n".join(lines) if lines else "They do not differ.")


def difference(first: RunConfig, second: RunConfig) -> list[str]:
    """`key: value -> value` for each option that differs; `-` stands for one that the other lacks."""
    left, right = (dict(line.split(" = ", 1) for line in describe(config)) for config in (first, second))
    keys = [*left, *(key for key in right if key not in left)]
    return [
        f"{key}: {left.get(key, '-')} -> {right.get(key, '-')}"
        for key in keys
        if left.get(key) != right.get(key)
    ]


def print_schema() -> None:
    """Print the JSON schema of a run's config, as editors and other programs read it."""
    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))
