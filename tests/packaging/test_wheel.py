"""What a wheel holds, and that the program in it runs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("astrolabe_ray", "actors", "learner", "reward_servers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_the_wheel_holds_every_file_of_the_four_packages(wheel: Path) -> None:
    """Weights and pages are no Python files and are easily left out."""
    for package in PACKAGES:
        source = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file()}
        wanted = {path for path in source if "__pycache__" not in path.parts}
        packed = {p.relative_to(wheel) for p in (wheel / package).rglob("*") if p.is_file()}
        assert wanted == packed


def test_the_wheel_holds_the_embedded_model(wheel: Path) -> None:
    """Without weights the demo of an installed package can't start."""
    weights = wheel / "astrolabe_ray" / "data" / "sprites" / "weights"
    parts = {path.parent.name for path in weights.rglob("*.safetensors")}
    assert {"transformer", "vae", "text_encoder", "clip"} <= parts
    assert sum(path.stat().st_size for path in weights.rglob("*") if path.is_file()) < 8 * 2**20


def test_the_wheel_puts_nothing_else_on_the_import_path(wheel: Path) -> None:
    """A top-level `tests` or `configs` package would shadow other people's."""
    names = {path.name for path in wheel.iterdir() if not path.name.startswith("astrolabe_ray-0.1.0.")}
    assert names == {*PACKAGES, "launch.py"}


def test_the_program_in_the_wheel_starts(wheel: Path, tmp_path: Path) -> None:
    """A module that exists in the checkout only would break every installed copy."""
    done = subprocess.run(
        [sys.executable, str(wheel / "launch.py"), "train", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "--dry-run" in done.stdout
