"""Follows a guide as a reader would: every fenced block of the markdown is carried out, in order.

What a block is says its first line, as in ```bash run:

    python file=NAME     becomes a file          diff          is applied with `git apply`
    bash run             runs, and must succeed  python run    runs as a script
    text of-the-above    each of its lines is in what the last command printed

Any other block is an error, so that nothing in a guide goes untried. As readers do not see that line, the
text before a file must name it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHECKOUT = ("astrolabe_ray", "actors", "learner", "reward_servers", "configs", "tests", "launch.py")
_BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One block. Example: `Step("bash run", "python launch.py models list\\n", line=12)`."""

    info: str
    text: str
    line: int  # of the markdown file
    before: str = ""  # the markdown's text before it, up to the block before


def steps_of(guide: Path) -> list[Step]:
    markdown, steps, end = guide.read_text(), [], 0
    for found in _BLOCK.finditer(markdown):
        line = markdown[: found.start()].count("\n") + 1
        steps.append(Step(found["info"].strip(), found["text"], line, markdown[end : found.start()]))
        end = found.end()
    return steps


def copy_checkout(folder: Path) -> Path:
    """What a reader has after `git clone`, as far as a guide needs it; returns `folder`."""
    folder.mkdir(parents=True)
    for name in (*CHECKOUT, "pyproject.toml"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def follow(guide: Path, folder: Path, *, only: str = "") -> str:
    """Carry out every block of `guide`, or those that begin with `only`; returns what the last one printed.

    Raises AssertionError with the line of a block that fails.
    """
    printed = ""
    for step in steps_of(guide):
        if not step.info.startswith(only):
            continue
        printed = _carry_out(step, folder, f"{guide.name}, line {step.line}", printed)
    return printed


def _carry_out(step: Step, folder: Path, where: str, printed: str) -> str:
    """What a command printed; for other blocks what was `printed` before."""
    _, is_file, name = step.info.partition(" file=")
    if is_file:
        assert f"`{name}`" in step.before, f"{where}: nobody would know that this is {name}"
        path = folder / name
        assert not path.exists(), f"{where}: {path.name} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.text)
    elif step.info == "diff":
        _run(["git", "apply", "--recount", "-"], folder, where, text=step.text)
    elif step.info == "bash run":
        return _run(["bash", "-euo", "pipefail", "-c", step.text], folder, where)
    elif step.info == "python run":
        return _run([sys.executable, "-c", step.text], folder, where)
    elif step.info == "text of-the-above":
        for line in step.text.splitlines():
            assert line in printed, f"{where}: '{line}' is not in\n{printed}"
    else:
        raise AssertionError(f"{where}: nobody tries a block of the kind '{step.info}'")
    return printed


def _run(command: list[str], folder: Path, where: str, *, text: str | None = None) -> str:
    python = Path(sys.executable).parent
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{python}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"},
        input=text,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr
