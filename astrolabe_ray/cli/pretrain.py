"""`pretrain`: the parts of the embedded model, trained from nothing by committed scripts."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import typer

from astrolabe_ray.errors import ConfigError

PARTS = ("text_encoder", "vae", "clip", "transformer")
NEEDED_BY_TRANSFORMER = ("text_encoder", "vae")


def pretrain(parts: Sequence[str], *, seed: int, out: Path) -> None:
    """Train `parts` (or `all`) into the model folder `out` and print how good each one is.

    Raises ConfigError for a part that does not exist, or whose own parts are not there, and for an
    `out` that can't be a folder.
    """
    wanted = PARTS if "all" in parts else parts
    for part in wanted:
        if part not in PARTS:
            meant = difflib.get_close_matches(part, PARTS, n=1)
            hint = f"did you mean '{meant[0]}'? " if meant else ""
            raise ConfigError(f"there is no part '{part}'; {hint}There are: {', '.join(PARTS)}, all")
    absent = [part for part in NEEDED_BY_TRANSFORMER if part not in wanted and not (out / part).is_dir()]
    if "transformer" in wanted and absent:
        raise ConfigError(f"the transformer needs {', '.join(absent)} in {out}: train them in the same call.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"can't make the folder {out}: {reason.strerror}. Try --out FOLDER.") from None
    for part in (part for part in PARTS if part in wanted):
        start = time.monotonic()
        measured = _trainer(part)(seed, out)
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        typer.echo(f"{part}: {numbers} after {time.monotonic() - start:.0f} s, in {out / part}")
    typer.echo(f"Use the model with --config.model.path={out.resolve()}")


def _trainer(part: str) -> Callable[[int, Path], dict[str, float]]:
    return getattr(import_module(f"astrolabe_ray.data.sprites.train_{part}"), f"train_{part}")
