"""Every scorer that looks at pictures by itself, at a tiny size with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large

from astrolabe_ray.config.reward_files import AESTHETIC_HEAD, CLIP_L14, HPSV2_WEIGHTS
from reward_servers.clip_scorers import AestheticScorer, ClipScorer, HPSv2Scorer, aesthetic_head
from reward_servers.flow_scorer import FlowScorer
from reward_servers.hpsv3_scorer import HPSv3Scorer
from reward_servers.image_quality_scorer import ImageQualityScorer
from reward_servers.motion_scorer import MotionScorer
from reward_servers.scorers import Scorer, ScorerSetup
from reward_servers.tiny_clip_scorer import TinyClipScorer
from reward_servers.videoreward_scorer import VideoRewardScorer
from tests.tiny_qwen import TEXT, TEXTS, write_hpsv3, write_videoreward

BUDGET = 16 * 28 * 28
ARCHITECTURE = "tiny-reward"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
SIZES = {"tiny_clip": (4, 32, 32), "image_quality": (4, 32, 32), "optical_flow_raft": (3, 128, 128)}
"""Frames, height and width that a scorer is shown; USUAL for the others."""
USUAL = (10, 40, 56)


def write_clip(folder: Path) -> None:
    """Files of HPSv2, CLIP score and the aesthetic predictor."""
    (folder / "config").mkdir(parents=True)
    path = folder / "config" / f"{ARCHITECTURE}.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)  # type: ignore[arg-type]
    tensors = {name: (x + 0.1 * torch.randn_like(x)).contiguous() for name, x in model.state_dict().items()}
    torch.save({"state_dict": tensors}, folder / HPSV2_WEIGHTS)
    (folder / CLIP_L14).parent.mkdir()
    save_file(tensors, folder / CLIP_L14)
    head = {name: 2 * x for name, x in aesthetic_head(24).state_dict().items()}
    torch.save(head, folder / AESTHETIC_HEAD)


def every_scorer(folder: Path, *, frames_per_forward: int = 32) -> dict[str, Scorer]:
    write_clip(folder / "clip")
    write_hpsv3(folder / "hpsv3")
    write_videoreward(folder / "videoreward")
    torch.manual_seed(0)
    torch.save(raft_large(weights=None).state_dict(), folder / "raft.pth")

    def setup(name: str, **options: str) -> ScorerSetup:
        return ScorerSetup(folder / name, frames_per_forward=frames_per_forward, options=options)

    clip = setup("clip", architecture=ARCHITECTURE)
    return {
        "tiny_clip": TinyClipScorer(setup("")),
        "motion_quality": MotionScorer(setup("")),
        "image_quality": ImageQualityScorer(setup("")),
        "hpsv3": HPSv3Scorer(setup("hpsv3"), texts=TEXTS, num_pixels=BUDGET),
        "videoreward": VideoRewardScorer(setup("videoreward"), text=TEXT, num_pixels=BUDGET),
        "hpsv2": HPSv2Scorer(clip),
        "aesthetic": AestheticScorer(clip),
        "clip": ClipScorer(clip),
        "optical_flow": FlowScorer(setup("", raft_weights="")),
        "optical_flow_raft": FlowScorer(setup("", raft_weights="raft.pth")),
    }
