"""How much room files take, as people read it."""

from __future__ import annotations

from pathlib import Path

UNITS = ("B", "kB", "MB", "GB")


def bytes_in(path: Path) -> int:
    """Of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def size(num_bytes: float) -> str:
    """Example: `1.4 GB`."""
    for unit in UNITS[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {UNITS[-1]}"
