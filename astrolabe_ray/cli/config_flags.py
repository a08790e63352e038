"""How a config is named and changed on a command line."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from astrolabe_ray.config.overrides import PREFIX
from astrolabe_ray.config.seed_keys import translated
from astrolabe_ray.errors import ConfigError

PASSES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

ConfigOption = Annotated[
    str, typer.Option("--config", metavar="FILE.py:PRESET", help="Config file and the preset in it.")
]


def overrides_in(arguments: list[str], known: tuple[str, ...]) -> list[str]:
    """The `--config.KEY=VALUE` of a command line, also when written `--config.KEY VALUE`.

    Keys of the first Astrolabe release are translated, with a note. Raises ConfigError for anything else,
    naming the likeliest of the `known` options.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith(PREFIX):
            meant = difflib.get_close_matches(argument.split("=")[0], known, n=1)
            options = ", ".join((*known, f"{PREFIX}KEY=VALUE"))
            hint = f"did you mean {meant[0]}?" if meant else f"there is {options}"
            raise ConfigError(f"there is no option '{argument}'; {hint}")
        found.append(argument if "=" in argument else f"{argument}={next(rest, '')}")
    overrides, notes = translated(found)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return overrides
