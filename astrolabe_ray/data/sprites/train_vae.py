"""Trains the tiny Wan VAE (the class that loads the published one) on sprite clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from astrolabe_ray.data.sprites.captions import heldout_captions
from astrolabe_ray.data.sprites.clips import random_captions, render_clips
from astrolabe_ray.data.sprites.training import Trainer
from astrolabe_ray.models.vae import VideoVAE, store_channels_last

NUM_CLIPS = 1200
NUM_IMAGE_STEPS, IMAGE_BATCH = 2500, 24
NUM_CLIP_STEPS, CLIP_BATCH, CLIP_FRAMES = 800, 6, 5
LATENT_NOISE = 0.05
ARCHITECTURE: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}


def train_vae(seed: int, out: Path) -> dict[str, float]:
    """Write `out/vae`; returns the PSNR (dB) of held-out clips.

    Single frames first, then short clips, which teach the temporal layers. A little noise on the
    latents makes the decoder forgiving; their mean and std go into the config, as in the real one.
    """
    torch.manual_seed(seed)
    network: Any = AutoencoderKLWan(**ARCHITECTURE)
    store_channels_last(network)
    clips = torch.from_numpy(render_clips(random_captions(NUM_CLIPS, seed), seed))

    def loss_on(batch: int, num_frames: int) -> Tensor:
        first = int(torch.randint(clips.shape[1] - num_frames + 1, ()))
        frames = clips[torch.randint(len(clips), (batch,)), first : first + num_frames]
        pixels = frames.float().transpose(1, 2) / 127.5 - 1
        latents = network.encode(pixels).latent_dist.mean
        error = network.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample - pixels
        spread = (latents.square().mean() - 1).clamp(min=0)
        return (sprite_weight(pixels) * (error.abs() + error.square())).mean() + 1e-3 * spread

    Trainer("vae, frames", [network], lr=2e-3).run(lambda: loss_on(IMAGE_BATCH, 1), num_steps=NUM_IMAGE_STEPS)
    Trainer("vae, clips", [network], lr=1e-3, ema_decay=0.98).run(
        lambda: loss_on(CLIP_BATCH, CLIP_FRAMES), num_steps=NUM_CLIP_STEPS
    )
    _standardise(network, clips[:64])
    network.save_pretrained(out / "vae")
    return {"heldout_psnr_db": _psnr(VideoVAE(network))}


def sprite_weight(pixels_BCFHW: Tensor) -> Tensor:
    """5 where a pixel differs from its frame's mean colour, 1 on the background."""
    mean = pixels_BCFHW.mean((3, 4), keepdim=True)
    return 1 + 4 * ((pixels_BCFHW - mean).abs().mean(1, keepdim=True) > 0.15).float()


@torch.no_grad()
def _standardise(network: Any, clips: Tensor) -> None:
    """Put the mean and std of the latents of some clips into the config."""
    latents = network.encode(clips.float().transpose(1, 2) / 127.5 - 1).latent_dist.mean
    network.register_to_config(
        latents_mean=[round(x, 4) for x in latents.mean((0, 2, 3, 4)).tolist()],
        latents_std=[round(x, 4) for x in latents.std((0, 2, 3, 4)).tolist()],
    )


def _psnr(vae: VideoVAE) -> float:
    clips = torch.from_numpy(render_clips(heldout_captions()[:32], 10_000_000)).float() / 127.5 - 1
    error = (vae.decode(vae.encode(clips)) - clips) / 2
    return float(-10 * error.square().mean().log10())
