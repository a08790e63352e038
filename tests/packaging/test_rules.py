"""The rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("astrolabe_ray", "actors", "learner", "reward_servers")
SOURCES = [
    *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")),
    ROOT / "launch.py",
]
REMOTE_CALLS_ALLOWED = {
    "actors/pool.py",
    "actors/video_pool.py",
    "learner/group.py",
    "reward_servers/pool.py",
    "reward_servers/deploy.py",
}
EMPTY_NAMES = {"utils", "helpers", "common", "manager", "handler"}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def waits_for_ever(call: ast.Call) -> bool:
    """True for `ray.get(...)` and `ray.wait(...)` without `timeout=`."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in ("get", "wait")
        and isinstance(function.value, ast.Name)
        and function.value.id == "ray"
        and not any(keyword.arg == "timeout" for keyword in call.keywords)
    )


def test_import_contracts_hold() -> None:
    """A role that imports another can't run in its own process or environment."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rule_on_waiting_finds_a_call_without_a_timeout() -> None:
    """A check that can't fail would protect nothing."""
    found = [waits_for_ever(call) for call in ast.walk(ast.parse("ray.get(x)")) if isinstance(call, ast.Call)]
    assert found == [True]
    allowed = ast.parse("ray.get(x, timeout=3); ray.wait([x], timeout=1); config.get(x)")
    assert not any(waits_for_ever(call) for call in ast.walk(allowed) if isinstance(call, ast.Call))


def test_nothing_waits_for_ray_without_a_timeout() -> None:
    """A lost object would hang the run for ever instead of failing it."""
    found = [
        f"{name_of(path)}:{call.lineno}" for path in SOURCES for call in calls(path) if waits_for_ever(call)
    ]
    assert found == []


def test_remote_calls_stay_in_the_clients_of_the_roles() -> None:
    """Ray spread over the code would make it impossible to run the controller without Ray."""
    found = [
        f"{name_of(path)}:{call.lineno}"
        for path in SOURCES
        if name_of(path) not in REMOTE_CALLS_ALLOWED and "/runtime/" not in name_of(path)
        for call in calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "remote"
    ]
    assert found == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_modules_and_functions_stay_readable(path: Path) -> None:
    """Files that do not fit a reader's head grow faults."""
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > MAX_FUNCTION_LINES]
    assert long == []
    assert not EMPTY_NAMES & set(path.stem.split("_")), "name a module after what it does"


def test_no_file_names_the_machine_it_was_written_on() -> None:
    """Paths of one machine and addresses of package servers break on every other machine."""
    words = [
        "/" + "work/",
        "/" + "farm/",
        "../" + "shared",
        "py" + "pi.org",
        "python" + "hosted",
        "TO" + "DO",
        "FIX" + "ME",
    ]
    pattern = re.compile("|".join(map(re.escape, words)))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    files = [ROOT / name for name in listed.stdout.splitlines()] if listed.returncode == 0 else SOURCES
    texts = [path for path in files if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".html", ""}]
    found = [
        name_of(path) for path in texts if path.is_file() and pattern.search(path.read_text(errors="ignore"))
    ]
    assert found == []
