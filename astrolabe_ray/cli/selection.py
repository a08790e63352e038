"""The config that a command line asks for."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from astrolabe_ray.cli.summary import row
from astrolabe_ray.config.compat import with_compat
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.overrides import apply_overrides
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.shrink import shrink


def selected(spec: str, overrides: Sequence[str], *, small: bool) -> RunConfig:
    """The preset, shrunk if `small`, with `overrides` applied last; says what shrinking replaced.

    Raises ConfigError for a missing file, an unknown preset or key, or a value out of range.
    """
    if not small:
        return load(spec, overrides)
    config, notes = shrink(load(spec))
    for note in notes:
        typer.echo(row("shrunk", note))
    return apply_overrides(config, with_compat(config, overrides))
