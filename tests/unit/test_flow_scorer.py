"""Motion rewards against their formulas by hand and against motion that is known."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_large

from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.errors import ConfigError, DataFailure
from reward_servers.flow_scorer import FlowScorer, dynamic_degree, smoothness
from reward_servers.scorers import ScorerSetup


def scorer(folder: Path = Path(), weights: str = "") -> FlowScorer:
    return FlowScorer(ScorerSetup(folder, options={"raft_weights": weights}))


def drifting(*speeds: float, height: int = 96, width: int = 128, grain: int = 4) -> np.ndarray:
    """A texture that moves right by so many pixels from frame to frame; uint8 [F, 3, H, W]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // grain, 3 * width // grain), dtype=np.uint8)
    texture = cv2.resize(coarse, (3 * width, height), interpolation=cv2.INTER_CUBIC)
    frames = []
    for x in np.cumsum((0.0, *speeds)):
        shift = np.array([[1, 0, x - width], [0, 1, 0]], np.float32)
        frames.append(cv2.warpAffine(texture, shift, (width, height), flags=cv2.INTER_CUBIC))
    return np.repeat(np.stack(frames)[:, None], 3, axis=1)


def test_the_dynamic_degree_is_its_formula() -> None:
    """By hand, for flow of 0.09 diagonals everywhere: m = 0.6, the best amount, so magnitude is
    1 - exp(-1.8) / 2 and temporal 1. With 0.09 and 0.03 in turn: m = 0.6 and 0.2, M = 0.4, changes of 0.4."""
    even = np.zeros((4, 2, 6, 8))
    even[:, 0] = 0.09
    assert dynamic_degree(even) == pytest.approx(1.5 * (1 - 0.5 * math.exp(-1.8)) + 1)
    uneven = even.copy()
    uneven[1::2] /= 3
    magnitude = math.exp(-0.04 / 0.08) * (1 - 0.5 * math.exp(-1.2))
    assert dynamic_degree(uneven) == pytest.approx(1.5 * magnitude + math.exp(-4))
    fast = np.full((2, 2, 10, 10), 9.0)
    assert dynamic_degree(fast) == pytest.approx(1.5 * math.exp(-2) * (1 - 0.5 * math.exp(-3)) + 1)


def test_only_the_fastest_twentieth_of_the_pixels_counts() -> None:
    """A small thing that moves before a still background is motion."""
    flow = np.zeros((1, 2, 10, 10))
    flow[0, 1, 0, :5] = 0.09
    assert dynamic_degree(flow) == pytest.approx(1.5 * (1 - 0.5 * math.exp(-1.8)) + 1)


def test_smoothness_is_its_formula() -> None:
    """Flow of 0.02 and 0.04 in turn changes by 0.02 at a mean of 0.03."""
    flow = np.zeros((4, 2, 5, 5))
    flow[:, 1] = np.array([0.02, 0.04, 0.02, 0.04])[:, None, None]
    assert smoothness(flow) == pytest.approx(math.exp(-0.02 / 0.031))
    assert smoothness(np.zeros((4, 2, 5, 5))) == 1.0 and smoothness(flow[:1]) == 1.0


def test_motion_that_is_known_is_measured() -> None:
    """3 pixels of a diagonal of 160 are 0.01875: m = 0.125. Levels of 0..1 in place of 0..255, as the first
    release fed them, hardly move at all for a network, and would score as a still."""
    scores = scorer().score(drifting(3, 3, 3, 3)[None], [""])
    mean = 3 / 160 / 0.15
    magnitude = math.exp(-((mean - 0.6) ** 2) / 0.08) * (1 - 0.5 * math.exp(-3 * mean))
    assert scores["dynamic_degree_score"][0] == pytest.approx(1.5 * magnitude + 1, abs=0.15)
    assert scores["motion_smoothness_score"][0] > 0.85


def test_steady_motion_is_smoother_than_jerks_of_the_same_length() -> None:
    """A reward for the amount of motion alone is won by shaking."""
    steady, jerky = scorer().score(np.stack([drifting(3, 3, 3, 3), drifting(0, 6, 0, 6)]), ["", ""])[
        "motion_smoothness_score"
    ]
    assert steady > jerky + 0.3


def test_scores_do_not_depend_on_the_resolution() -> None:
    """Twice the size means twice the pixels of flow for the same film."""
    small = scorer().score(drifting(2, 2, 2)[None], [""])
    large = scorer().score(drifting(4, 4, 4, height=192, width=256, grain=8)[None], [""])
    for name in small:
        assert small[name][0] == pytest.approx(large[name][0], abs=0.05), name


def test_a_score_depends_neither_on_its_batch_nor_on_its_place() -> None:
    """The search for flow must keep nothing of the video before."""
    films = [drifting(1, 2, 3), drifting(5, 0, 5), drifting(0, 0, 0)]
    ours = scorer()
    together, turned = ours.score(np.stack(films), [""] * 3), ours.score(np.stack(films[::-1]), [""] * 3)
    for name, column in together.items():
        assert list(column) == [ours.score(film[None], [""])[name][0] for film in films]
        assert list(column) == list(turned[name][::-1])


def test_one_frame_is_no_motion() -> None:
    """The mean of no pairs is NaN."""
    with pytest.raises(DataFailure, match="motion needs two frames"):
        scorer().score(drifting()[None], [""])


def test_raft_is_used_where_its_weights_are(tmp_path: Path) -> None:
    """An option that is read and then ignored looks the same from outside."""
    assert BY_NAME["optical_flow"].file_options == ("raft_weights",)
    torch.manual_seed(0)
    network = raft_large(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "raft.pth")
    film = drifting(3, height=132, width=140)
    frames = torch.from_numpy(film).float() / 255 * 2 - 1
    with torch.no_grad():
        padded = torch.nn.functional.pad(frames, (0, 4, 0, 4), mode="replicate")
        flow = network(padded[:1], padded[1:])[-1][..., :132, :140].numpy() / math.hypot(132, 140)
    ours = scorer(tmp_path, "raft.pth")
    assert ours.score(film[None], [""])["dynamic_degree_score"][0] == pytest.approx(
        dynamic_degree(flow), rel=1e-4
    )
    with pytest.raises(DataFailure, match="RAFT needs sides of 128 pixels"):
        ours.score(film[None, ..., :100, :100], [""])
    torch.save({"fnet.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="do not fit the model"):
        scorer(tmp_path, "other.pth")


@pytest.mark.parametrize("size", [(8, 8), (15, 120), (120, 15), (16, 40_000)])
def test_pictures_that_the_search_for_flow_cannot_take_are_refused(size: tuple[int, int]) -> None:
    """OpenCV fails for 8 x 8, and ends the whole process for 15 x 120."""
    with pytest.raises(DataFailure, match=rf"sides of 16 to 32767 pixels.* {size[0]} x {size[1]}"):
        scorer().score(np.zeros((1, 2, 3, *size), np.uint8), [""])


def test_the_smallest_picture_that_is_taken_is_searched() -> None:
    """A bound that lets through what crashes."""
    for size in ((16, 16), (16, 128), (128, 16)):
        still = np.random.default_rng(0).integers(0, 256, (1, 1, 3, *size), np.uint8).repeat(3, axis=1)
        assert scorer().score(still, [""])["motion_smoothness_score"][0] == pytest.approx(1.0, abs=0.01)
