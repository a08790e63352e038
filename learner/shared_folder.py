"""Whether a folder is one and the same for the ranks and for the driver, that is, on storage they share."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from astrolabe_ray.errors import ConfigError

SEEN_TIMEOUT_S = 90.0
"""Other nodes see a new file on NFS after up to 60 s by default."""
LOOK_AGAIN_S = 0.5


def leave_mark(path: Path) -> None:
    """On the node of a rank. Raises ConfigError when its folder is not there or can't be written to."""
    try:
        path.touch()
    except OSError as error:
        raise ConfigError(_not_shared(path.parent, f"a learner rank can't write there: {error}")) from error


async def require_seen(path: Path) -> None:
    """Wait until this process sees what a rank wrote. Raises ConfigError when it does not appear."""
    deadline = time.monotonic() + SEEN_TIMEOUT_S
    while not await asyncio.to_thread(_is_there, path):
        if time.monotonic() > deadline:
            seen = f"a learner rank wrote {path.name}, and it is not here after {SEEN_TIMEOUT_S:g} s"
            raise ConfigError(_not_shared(path.parent, seen))
        await asyncio.sleep(LOOK_AGAIN_S)


def _not_shared(folder: Path, seen: str) -> str:
    return (
        f"{folder} is not the same folder on all nodes: {seen}. Name one on storage that the nodes of the "
        "learner and of this program share, with an absolute --config.logging.log_dir."
    )


def _is_there(path: Path) -> bool:
    """Listing the folder first makes NFS forget that the file was not there."""
    try:
        os.listdir(path.parent)
    except FileNotFoundError:
        return False
    return path.exists()
