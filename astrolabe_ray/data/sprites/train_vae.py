"""Trains the tiny Wan VAE (the class that loads the published one) on sprite clips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanResidualBlock,
)
from torch import Tensor, nn

from astrolabe_ray.data.sprites.captions import heldout_captions
from astrolabe_ray.data.sprites.clips import random_captions, render_clips
from astrolabe_ray.data.sprites.training import Trainer
from astrolabe_ray.models.vae import VideoVAE, store_channels_last

NUM_CLIPS = 1200
STAGES = (("vae, frames", 24, 1, 1200), ("vae, clips", 3, 13, 800))
"""Title, clips in a batch, frames of each, steps."""
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

    Single frames first, then clips, which teach the temporal layers. A little noise on the latents
    makes the decoder forgiving; their mean and std go into the config, as in the real one.
    """
    torch.manual_seed(seed)
    network: Any = AutoencoderKLWan(**ARCHITECTURE)
    _start_simple(network)
    store_channels_last(network)
    clips = torch.from_numpy(render_clips(random_captions(NUM_CLIPS, seed), seed))
    decoded: list[Tensor] = []  # before the clamp to [-1, 1], which would stop the gradient
    hook = network.decoder.register_forward_hook(lambda _, __, frames: decoded.append(frames))

    def loss_on(batch: int, num_frames: int) -> Tensor:
        first = int(torch.randint(clips.shape[1] - num_frames + 1, ()))
        frames = clips[torch.randint(len(clips), (batch,)), first : first + num_frames]
        pixels = frames.float().transpose(1, 2) / 127.5 - 1
        latents = network.encode(pixels).latent_dist.mean
        network.decode(latents + LATENT_NOISE * torch.randn_like(latents))
        error = torch.cat(decoded, dim=2) - pixels
        decoded.clear()
        spread = (latents.square().mean() - 1).clamp(min=0)
        return (sprite_weight(pixels) * (error.abs() + error.square())).mean() + 1e-3 * spread

    for title, batch, length, num_steps in STAGES:
        Trainer(title, [network], lr=1.5e-3, ema_decay=0.98).run(
            partial(loss_on, batch, length), num_steps=num_steps
        )
    hook.remove()
    _standardise(network, clips[:64])
    psnr = _psnr(VideoVAE(network))
    network.half().save_pretrained(out / "vae")
    return {"heldout_psnr_db": psnr}


@torch.no_grad()
def _start_simple(network: nn.Module) -> None:
    """Start as a chain that passes colours through: convolutions near the identity, silent branches.

    The 3 x 3 x 3 convolutions stay blind to earlier frames. Time is mixed by the layers that change the
    frame rate alone, whose reach is a few frames, so short training clips show everything that a long
    video can contain.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            _pass_through(module)
        if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 3, 3):
            module.weight[:, :, :-1] = 0
            module.weight.register_hook(_of_newest_frame)
        if isinstance(module, WanResidualBlock | WanAttentionBlock):
            last = module.conv2 if isinstance(module, WanResidualBlock) else module.proj
            for parameter in last.parameters():
                parameter.zero_()


def _pass_through(conv: nn.Conv2d | nn.Conv3d) -> None:
    """Add the identity at the centre of the newest frame; more outputs than inputs repeat it."""
    num_out, num_in = conv.weight.shape[:2]
    newest = conv.weight[:, :, -1] if isinstance(conv, nn.Conv3d) else conv.weight
    centre = newest[:, :, newest.shape[2] // 2, newest.shape[3] // 2]
    centre += torch.eye(num_in).repeat(-(-num_out // num_in), 1)[:num_out]


def _of_newest_frame(gradient: Tensor) -> Tensor:
    kept = torch.zeros_like(gradient)
    kept[:, :, -1] = gradient[:, :, -1]
    return kept


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
