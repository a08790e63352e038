"""Amount and smoothness of motion from dense optical flow: OpenCV's DIS, or RAFT where its weights are.

Flow is measured in shares of the picture's diagonal per frame, so that scores do not depend on resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from torchvision.models.optical_flow import raft_large

from astrolabe_ray.errors import DataFailure
from astrolabe_ray.models.checkpoints import load_strict
from astrolabe_ray.models.weight_files import read_pickled
from reward_servers.scorers import ScorerSetup

FULL_MOTION = 0.15
"""Diagonals per frame that count as 1."""
FASTEST = 0.05
"""Share of the pixels that a frame's motion is the mean of."""
WANTED, SPREAD = 0.6, 0.2
"""Motion that scores best, and how fast the score falls around it."""
TOO_MUCH = 1.2
UNSTEADY = 0.1
"""Mean change of motion from frame to frame at which the temporal part falls to 1/e."""
STILL = 0.001
"""Diagonals per frame below which flow is noise."""
RAFT_SIDE, RAFT_UNIT = 128, 8
DIS_SIDE, DIS_LONGEST = 16, 32767
"""Pixels. Below the first, OpenCV fails or reads past its pyramid; above the second it can't resize."""

Flow = Callable[[np.ndarray], np.ndarray]
"""uint8 [F, 3, H, W] -> pixels [F - 1, 2, H, W] from each frame to the next."""


class FlowScorer:
    """`dynamic_degree_score` likes a certain amount of steady motion (0 to 2.5), `motion_smoothness_score`
    motion that changes little from frame to frame (0 to 1, and 1 for a still video)."""

    def __init__(self, setup: ScorerSetup) -> None:
        """Raises ConfigError for weights that RAFT can't use."""
        weights = setup.options["raft_weights"]
        self._flow: Flow = raft(setup.folder / weights, setup.device) if weights else dis()

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]; prompts are not looked at. Raises DataFailure for a single frame."""
        if videos.shape[1] < 2:
            raise DataFailure("motion needs two frames, the videos have one")
        flows = [self._flow(video) / np.hypot(*video.shape[2:]) for video in videos]
        return {
            "dynamic_degree_score": np.array([dynamic_degree(flow) for flow in flows], np.float32),
            "motion_smoothness_score": np.array([smoothness(flow) for flow in flows], np.float32),
        }


def dynamic_degree(flow_T2HW: np.ndarray) -> float:
    """1.5 x magnitude + temporal, of flow in diagonals per frame.

    With m the motion of each frame (mean of its fastest 5 %, in units of 0.15 diagonals, at most 1) and M
    their mean: magnitude = exp(-(M - 0.6)^2 / 0.08) (1 - clip((M - 1.2) / 1.2)) (1 - exp(-3 M) / 2), and
    temporal = exp(-mean |change of m| / 0.1).
    """
    speeds = np.clip(np.linalg.norm(flow_T2HW, axis=1) / FULL_MOTION, 0, 1).reshape(len(flow_T2HW), -1)
    count = max(1, int(FASTEST * speeds.shape[1]))
    motion = np.sort(speeds, axis=1)[:, -count:].mean(axis=1)
    mean = float(motion.mean())
    magnitude = np.exp(-((mean - WANTED) ** 2) / (2 * SPREAD**2))
    magnitude *= 1 - np.clip((mean - TOO_MUCH) / TOO_MUCH, 0, 1)
    magnitude *= 1 - 0.5 * np.exp(-3 * mean)
    changes = np.abs(np.diff(motion))
    temporal = np.exp(-float(changes.mean()) / UNSTEADY) if len(changes) else 1.0
    return float(1.5 * magnitude + temporal)


def smoothness(flow_T2HW: np.ndarray) -> float:
    """exp(-mean |change of flow| / (mean |flow| + 0.001)), of flow in diagonals per frame; 1 for one pair."""
    if len(flow_T2HW) < 2:
        return 1.0
    change = np.linalg.norm(np.diff(flow_T2HW, axis=0), axis=1).mean()
    return float(np.exp(-change / (np.linalg.norm(flow_T2HW, axis=1).mean() + STILL)))


def dis() -> Flow:
    """On the CPU, gray, without weights."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(video: np.ndarray) -> np.ndarray:
        height, width = video.shape[2:]
        if min(height, width) < DIS_SIDE or max(height, width) > DIS_LONGEST:
            raise DataFailure(
                f"optical flow needs sides of {DIS_SIDE} to {DIS_LONGEST} pixels, the videos have "
                f"{height} x {width}"
            )
        planes = [cv2.cvtColor(frame.transpose(1, 2, 0), cv2.COLOR_RGB2GRAY) for frame in video]
        pairs = [search.calc(a, b, None) for a, b in pairwise(planes)]  # type: ignore[call-overload]
        return np.stack(pairs).transpose(0, 3, 1, 2)

    return flow


def raft(weights: Path, device: str) -> Flow:
    """torchvision's RAFT (large). Raises ConfigError for other weights."""
    network = raft_large(weights=None)
    load_strict(network, read_pickled(weights), weights)
    network.to(device, torch.float32).eval().requires_grad_(False)

    @torch.inference_mode()
    def flow(video: np.ndarray) -> np.ndarray:
        height, width = video.shape[2:]
        if min(height, width) < RAFT_SIDE:
            raise DataFailure(f"RAFT needs sides of {RAFT_SIDE} pixels, the videos have {height} x {width}")
        frames = torch.from_numpy(np.ascontiguousarray(video)).to(device).float() / 127.5 - 1
        margins = (0, -width % RAFT_UNIT, 0, -height % RAFT_UNIT)
        frames = torch.nn.functional.pad(frames, margins, mode="replicate")
        pairs = [network(a[None], b[None])[-1][0] for a, b in pairwise(frames)]
        return torch.stack(pairs)[..., :height, :width].cpu().numpy()

    return flow
