"""Pixels of the VAE against diffusers' own way, which pads copies and decodes a latent frame at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from torch import Tensor

from astrolabe_ray.models import vae as vae_module
from astrolabe_ray.models.vae import VideoVAE
from tests.tiny_model import write_tiny_model

SIZES = [(1, 5, 4, 4), (3, 4, 5, 3), (2, 9, 1, 1)]  # B, T, H, W of latents
ROUNDING = 1e-4  # norms of this random network make 1e-5 of another order of additions; a slip makes 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model")) / "vae"


def random_latents(batch: int, frames: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, frames, 4, height, width, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_latents_are_those_of_diffusers(folder: Path, size: tuple[int, int, int, int]) -> None:
    """With zeros missing at the edges or before the video all colours are a bit off."""
    library = AutoencoderKLWan.from_pretrained(folder)
    mean, std = (
        torch.tensor(getattr(library.config, name)).view(1, 1, -1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    vae, latents = VideoVAE.load(folder, "cpu", torch.float32), random_latents(*size)
    with torch.no_grad():
        pixels = library.decode((latents * std + mean).transpose(1, 2)).sample.transpose(1, 2)
        encoded = library.encode(pixels.transpose(1, 2)).latent_dist.mode().transpose(1, 2)
    torch.testing.assert_close(vae.decode(latents), pixels.clamp(-1, 1), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(vae.encode(pixels), (encoded - mean) / std, atol=ROUNDING, rtol=0)
    assert pixels.std() > 0.01
    assert not any(type(module) is WanCausalConv3d for module in vae._network.modules()), "a padded copy each"


@pytest.mark.parametrize("size", SIZES)
def test_frames_decoded_together_are_those_decoded_one_by_one(
    folder: Path, size: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video must not depend on how many others its actor makes beside it."""
    vae, latents = VideoVAE.load(folder, "cpu", torch.float32), random_latents(*size)
    together = vae.decode(latents)
    monkeypatch.setattr(vae_module, "MAX_LATENT_PIXELS", 1)
    torch.testing.assert_close(vae.decode(latents), together, atol=ROUNDING, rtol=0)


def test_only_small_frames_are_decoded_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size the features of several frames at once would not fit the GPU."""
    vae, lengths = VideoVAE.load(folder, "cpu", torch.float32), list[int]()
    decoder = vae._network.decoder
    decoder.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[2]))
    monkeypatch.setattr(vae_module, "MAX_LATENT_PIXELS", 2 * 2 * 16)
    vae.decode(random_latents(2, 6, 4, 4))  # two frames of both videos
    vae.decode(random_latents(2, 3, 6, 6))
    vae.decode(random_latents(2, 1, 4, 4))
    assert lengths == [1, 2, 2, 1, 1, 1, 1, 1]
