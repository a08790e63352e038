"""The beginning that videos go on from: a video file, or latents as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actors.video_models import VideoModels
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.video import decode_mp4
from astrolabe_ray.types import FrameSpec
from astrolabe_ray.video_tasks import FRAMES_PER_LATENT_FRAME

LATENTS = "latents"
"""Name of the tensor in a .safetensors file."""


def given_latents(models: VideoModels, path: str) -> Tensor:
    """Clean latents [T, C, H, W] of what the file shows, a whole number of chunks.

    Of a video the last 4 (T - 1) + 1 frames are taken, T being the largest multiple of chunk_frames
    that it is long enough for, in the size of the videos to be made. Of latents the first T: the first
    one of a video stands for one frame and all others for four, so none of them can take its place.
    Raises ConfigError for a file that is too short or can't be read, and for latents of another shape or
    with values that are no numbers.
    """
    m = models.spec.model
    if Path(path).suffix == ".safetensors":
        latents = _read_latents(Path(path))
        shape = (models.transformer.architecture.in_channels, m.height // 8, m.width // 8)
        if latents.dim() != 4 or tuple(latents.shape[1:]) != shape:
            raise ConfigError(
                f"the latents in {path} have shape {tuple(latents.shape)}; needed is [T, C, H, W] with "
                f"C, H, W = {shape}"
            )
        usable = len(latents) // m.chunk_frames * m.chunk_frames
        _require(usable, len(latents), m.chunk_frames, path, "latent frames", m.chunk_frames)
        _require_finite(latents[:usable], path)
        return latents[:usable].float()
    video = _read_video(Path(path))
    usable = ((len(video) + 3) // FRAMES_PER_LATENT_FRAME) // m.chunk_frames * m.chunk_frames
    needed = FRAMES_PER_LATENT_FRAME * (m.chunk_frames - 1) + 1
    _require(usable, len(video), m.chunk_frames, path, "frames", needed)
    frames = derive_view(
        video[-(FRAMES_PER_LATENT_FRAME * (usable - 1) + 1) :], FrameSpec(height=m.height, width=m.width)
    )
    with models.visits.of(models.vae):
        return models.vae.encode(torch.from_numpy(frames).float()[None] / 127.5 - 1)[0]


def _require(usable: int, found: int, chunk_frames: int, path: str, what: str, needed: int) -> None:
    if not usable:
        raise ConfigError(
            f"{path} has {found} {what}, a chunk of {chunk_frames} latent frames needs {needed}; "
            "give a longer one"
        )


def _require_finite(latents: Tensor, path: str) -> None:
    bad = (~latents.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ConfigError(
            f"the latents in {path} are not finite in {len(bad)} of {len(latents)} latent frames, the first "
            f"is {bad[0]}; give a file without NaN and infinity"
        )


def _read_latents(path: Path) -> Tensor:
    try:
        return load_file(path)[LATENTS]
    except (OSError, SafetensorError, KeyError) as reason:
        raise ConfigError(f"can't read '{LATENTS}' from {path}: {reason}") from None


def _read_video(path: Path) -> np.ndarray:
    try:
        return decode_mp4(path.read_bytes())[0]
    except (OSError, ValueError) as reason:  # PyAV's errors are both
        raise ConfigError(f"can't read the video {path}: {reason}") from None
