"""The flags of `score` and of the HTTP door, as they can be typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Http = Annotated[
    bool, typer.Option("--http", help="Also by HTTP, with a page to drop videos on; needs a token.")
]
Host = Annotated[str, typer.Option(help="Address of the head node to listen at; 0.0.0.0: all of them.")]
Port = Annotated[int, typer.Option(min=1, max=65535)]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the token; without it $ASTROLABE_TOKEN.")
]
