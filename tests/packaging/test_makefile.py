"""What `make` does on machines that lack something."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

PYTHON_WITHOUT_ENSUREPIP = """#!/bin/sh
[ "$1" = -c ] && exit 0
mkdir -p "$3/bin" && ln -s /bin/true "$3/bin/python"
exit 1
"""
"""Like Debian's without python3-venv: it fails after it has put an interpreter without pip there."""


def test_an_environment_that_could_not_be_made_is_not_taken_for_one(tmp_path: Path) -> None:
    """After the advice was followed, the next `make demo` would end with `No module named pip`."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python3"
    python.write_text(PYTHON_WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={python}", "install"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "apt-get install python3-venv" in done.stdout
    assert not (tmp_path / ".venv").exists()
