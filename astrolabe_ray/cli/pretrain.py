"""`pretrain`: the parts of the embedded model, trained from nothing by committed scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from astrolabe_ray.data.sprites.pretrain import pretrain as train_parts


def pretrain(parts: Sequence[str], *, seed: int, out: Path) -> None:
    """Train `parts` into the model folder `out` and print how good each is. Raises ConfigError."""
    for part, measured in train_parts(parts, seed=seed, out=out).items():
        typer.echo(f"{part}: {', '.join(f'{name} {value:.4g}' for name, value in measured.items())}")
    typer.echo(f"In {out}; use it with --config.model.path={out.resolve()}")
