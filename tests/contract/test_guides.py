"""The guides of docs/, followed step by step by somebody who believes every word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from astrolabe_ray.report.video import decode_mp4
from tests.guide_steps import ROOT, copy_checkout, follow

DOCS = ROOT / "docs"


def frames_of(path: Path) -> np.ndarray:
    return decode_mp4(path.read_bytes())[0]


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
