"""Clip-level groups (Astrolabe, arXiv 2603.17051): the history of a video is made once, then several clips go
on from it, each with noise of its own.

Legend: B rollouts of one request, T latent frames, F frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.decoder import VideoDecoder
from actors.generation import Generation
from actors.sampler import Sampler
from astrolabe_ray.batching import slices
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.transformer import TextKV
from astrolabe_ray.types import RolloutRequest

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Sampled:
    """What the rollouts of a request became, in host memory."""

    latents_BTCHW: Tensor  # float32; up to the window's end, or the window's only, if there is a prefix
    videos: np.ndarray  # uint8 [B, F, 3, H, W] of the window
    decode_s: float
    prefix_1TCHW: Tensor | None = None  # of the frames before the window, which all rollouts share

    @property
    def is_finite(self) -> bool:
        parts = (
            (self.latents_BTCHW,) if self.prefix_1TCHW is None else (self.prefix_1TCHW, self.latents_BTCHW)
        )
        return all(bool(part.isfinite().all()) for part in parts)


def sample_clips(
    sampler: Sampler, vae: VideoVAE, text_kv: TextKV, request: RolloutRequest, *, height: int, width: int
) -> Sampled:
    """The frames before `request.window` once, and behind them a clip for each seed; sizes in pixels.

    The prefix is passed through transformer and decoder once. Clips are made `request.batch_size` at a
    time, each batch with a copy of the keys and values in view, so that memory has one more video than that.
    The noise of a clip begins where the clip does.
    """
    assert request.window is not None and request.prefix_seed is not None, "clips need a window and a prefix"
    start, end = request.window
    assert start > 0, "a window at the start has no prefix"
    size = (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    prefix = sampler.begin(text_kv, (request.prefix_seed,), end, *size)
    decoder = VideoDecoder(
        vae, batch=1, num_latent_frames=end, height=height, width=width, first_latent_frame=start
    )
    prefix_1TCHW = _grown(prefix, decoder, start)
    latents, videos, decode_s = [], [], decoder.seconds
    count = len(request.seeds)
    for part in slices(count, request.batch_size or count):
        seeds = [request.seeds[number] for number in part]
        clips_BTCHW, part_videos, seconds = _clips(prefix, decoder, seeds, end - start)
        latents.append(clips_BTCHW)
        videos.append(part_videos)
        decode_s += seconds
    return Sampled(torch.cat(latents), np.concatenate(videos), decode_s, prefix_1TCHW)


def _clips(
    prefix: Generation, decoder: VideoDecoder, seeds: Sequence[int], num_frames: int
) -> tuple[Tensor, np.ndarray, float]:
    """Clips of one batch: latents [B, T, C, H, W], frames, seconds of decoding."""
    clips, decoder = prefix.fork(seeds), decoder.fork(len(seeds))
    clips_BTCHW = _grown(clips, decoder, num_frames)
    return clips_BTCHW, decoder.videos(), decoder.seconds


def _grown(generation: Generation, decoder: VideoDecoder, num_frames: int) -> Tensor:
    """Latents [B, T, C, H, W] of the next `num_frames`, whole chunks, on the CPU; `decoder` has seen them."""
    chunks, missing = [], num_frames
    while missing > 0:
        chunk_BTCHW = generation.extend()
        missing -= chunk_BTCHW.shape[1]
        chunks.append(chunk_BTCHW.cpu())  # waits for the GPU, so that the decoder times itself only
        decoder.add(chunk_BTCHW)
    assert missing == 0, f"{num_frames} frames are no whole chunks"
    return torch.cat(chunks, dim=1)
