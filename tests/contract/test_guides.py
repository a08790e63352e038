"""The guides of docs/, followed step by step by somebody who believes every word."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer import BadParameter
from typer.main import get_command

import launch
from astrolabe_ray.cli.app import make_app
from astrolabe_ray.cli.config_flags import overrides_in
from astrolabe_ray.cli.selection import selected
from astrolabe_ray.config.loader import load
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.video import decode_mp4
from tests.guide_steps import ROOT, copy_checkout, follow, steps_of

DOCS = ROOT / "docs"
MISTAKE = "rollout.groupsize"  # shown on purpose
UsageError: Any = BadParameter.__base__  # of click, which typer brings along or in itself
NEW_FILES = re.compile(r"configs/my_model\.py|my_configs\.py")


def frames_of(path: Path) -> np.ndarray:
    return decode_mp4(path.read_bytes())[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stranger_adds_a_base_model(tmp_path: Path) -> None:
    """A guide that has drifted from the code is worse than none."""
    folder = copy_checkout(tmp_path / "checkout")
    follow(DOCS / "new-model.md", folder)
    by_options, by_name, renamed = (
        frames_of(folder / "logs" / name / "videos" / "00000.mp4") for name in ("look", "named", "renamed")
    )
    assert by_name.shape == (29, 3, 192, 192)
    assert (by_options == by_name).all(), "the entry says the same as the options"
    assert (by_name == renamed).all(), "the same weights under other names"
    original = torch.load(folder / "checkpoints" / "my_model.pt", weights_only=True)["generator_ema"]
    tensors = load_file(folder / "checkpoints" / "renamed.safetensors")
    assert {f"model.{name}" for name in tensors} == original.keys()


@pytest.mark.timeout(900)
def test_two_pipelines_do_what_the_guide_says(tmp_path: Path) -> None:
    """Programs that run and make the same video as without them."""
    folder = copy_checkout(tmp_path / "checkout")
    printed = follow(DOCS / "new-pipeline.md", folder)
    video = frames_of(folder / "ping_pong.mp4")
    assert len(video) == 4 * (4 * 4 * 3 - 1) + 1
    red, _, blue = (video[44::48, channel].astype(float).mean((1, 2)) for channel in range(3))
    assert [bool(is_red) for is_red in red > blue] == [True, False, True, False], (red, blue)
    one, four = (float(line.split()[-1]) for line in printed.splitlines() if ": motion " in line)
    assert four > one + 0.01, "four tries are better than one"


@pytest.mark.timeout(900)
def test_a_video_hears_what_is_typed(tmp_path: Path) -> None:
    """Lines that are lost, or all heard at once."""
    folder = copy_checkout(tmp_path / "checkout")
    follow(DOCS / "interactive.md", folder)
    video = frames_of(folder / "talk.mp4")
    assert len(video) == 9 + 12 + 9 + 3 * 12, "the cut of the third chunk begins a new count"
    red, green, blue = video.astype(float).mean((2, 3)).T
    assert red[8] > blue[8] + 10, "nothing is heard before it is said"
    assert blue[20] > blue[8] + 10, "a soft turn to blue"
    assert min(red[21], green[21], blue[21]) > 120, "a white background at once"
    assert green[-1] > max(red[-1], blue[-1]) + 2, "something green on it"


def test_python_in_other_pages_runs(tmp_path: Path) -> None:
    """An example that nobody tried."""
    folder = copy_checkout(tmp_path / "checkout")
    follow(DOCS / "generate.md", folder, only="python")
    follow(DOCS / "getting-started.md", folder, only="python")
    assert len(frames_of(folder / "star.mp4")) == 4 * (20 * 3 - 1) + 1
    assert load(f"{folder / 'my_configs.py'}:colours_first").rollout.group_size == 16


def test_links_lead_somewhere_and_the_index_names_every_page() -> None:
    """A page that was renamed, or that nobody finds."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    broken = [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()]
    assert [link for link in broken if "://" not in link] == []
    named = {target for page, target in links if page == DOCS / "index.md"}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= named


def commands() -> list[str]:
    """Every `python launch.py ...` of README and docs, on one line each."""
    pages = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), ROOT / "cluster" / "README.md"]
    text = "\n".join(step.text.replace("\\\n", " ") for page in pages for step in steps_of(page))
    found = re.findall(r"python \S*launch\.py (.*)", text)
    return sorted({" ".join(line.split()) for line in found})


def parsed(arguments: list[str]) -> list[str]:
    """The overrides of a command line, which nothing is done with but reading it.

    Raises click's UsageError or ConfigError for what the command does not have or lacks.
    """
    command: Any = get_command(make_app(launch.WIRING))
    rest, context = arguments, None
    while hasattr(command, "commands"):
        name, *rest = rest
        context = command.make_context(name, [name, *rest], parent=context)
        command = command.commands[name]
    read = command.make_context(arguments[0], rest, parent=context)
    assert read.command.context_settings.get("allow_extra_args") or not read.args
    return overrides_in(read.args, ())


@pytest.mark.parametrize("line", commands())
def test_every_command_in_the_documentation_can_be_typed(line: str) -> None:
    """Options are renamed, presets too, and pages are forgotten."""
    arguments = shlex.split(line.partition(" > ")[0], comments=True)
    overrides = parsed(arguments)
    for preset in (argument for argument in arguments if argument.startswith("configs/")):
        if not NEW_FILES.search(preset) and MISTAKE not in line:
            selected(f"{ROOT}/{preset}", overrides, small="--shrink" in arguments)


@pytest.mark.parametrize(
    "line",
    [
        "train --config configs/nft_tiny.py:tiny_sprites --dryrun",
        "rewards up --config configs/nft_tiny.py:tiny_sprites --shrink",
        "rewards up",
        "models check",
        "models check longlive now",
        "configs show configs/nft_tiny.py:tiny_sprites --all",
        "generate --promt x",
        "models fetch longlive",
    ],
)
def test_what_cannot_be_typed_is_noticed(line: str) -> None:
    """With `--help` behind it everything passed that a command hands on unread."""
    with pytest.raises((UsageError, ConfigError, KeyError)):
        parsed(line.split())
