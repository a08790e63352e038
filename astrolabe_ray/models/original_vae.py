"""The Wan VAE as Wan published it (`Wan2.1_VAE.pth`), made an AutoencoderKLWan of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import load_strict
from astrolabe_ray.models.weight_files import read_pickled, require_kind

# Of the 16 latent channels; the file itself does not hold them.
LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
UP_STAGE = 4  # layers of a decoder stage in the flat original list: three residual blocks, one upsampler

_PARTS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_CODER = re.compile(r"(?P<side>encoder|decoder)\.(?P<rest>.+)")
_LAYER = re.compile(r"(?P<list>middle|downsamples|upsamples)\.(?P<index>\d+)\.(?P<rest>.+)")
_END = re.compile(r"(?P<part>.+)\.(?P<end>weight|bias|gamma)")


def read_original_vae(path: Path) -> AutoencoderKLWan:
    """The VAE on the CPU, memory-mapped; sizes are those of the tensors.

    Raises ConfigError if the file is damaged, of another kind or no Wan 2.1 VAE.
    """
    loaded = read_pickled(path)
    require_kind(loaded, "a VAE", path)
    absent = [name for name in ("encoder.conv1.weight", "conv2.weight") if name not in loaded]
    if absent:
        raise ConfigError(f"{path} is no original Wan VAE: it lacks {', '.join(absent)}")
    z_dim = loaded["conv2.weight"].shape[0]
    if z_dim != len(LATENTS_MEAN):
        raise ConfigError(f"{path} has {z_dim} latent channels, the VAE of Wan 2.1 has {len(LATENTS_MEAN)}")
    with torch.device("meta"):
        create: Any = AutoencoderKLWan
        network = create(
            base_dim=loaded["encoder.conv1.weight"].shape[0],
            z_dim=z_dim,
            latents_mean=list(LATENTS_MEAN),
            latents_std=list(LATENTS_STD),
        )
    load_strict(network, renamed(loaded), path)
    return network


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names made those of diffusers; unknown ones stay."""
    return {_diffusers_name(name): tensor for name, tensor in tensors.items()}


def _diffusers_name(name: str) -> str:
    if name.startswith("conv1."):
        return "quant_" + name.replace("conv1", "conv")
    if name.startswith("conv2."):
        return "post_quant_" + name.replace("conv2", "conv")
    coder = _CODER.fullmatch(name)
    if coder is None:
        return name
    return f"{coder['side']}.{_coder_name(coder['rest'])}"


def _coder_name(name: str) -> str:
    """Name within the encoder or decoder."""
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return _replaced(name, _PARTS)
    kind, index, rest = layer["list"], layer["index"], _replaced(layer["rest"], _RESIDUAL)
    if kind == "middle":
        return f"mid_block.{_MIDDLE.get(index, index)}.{rest}"
    if kind == "downsamples":
        return f"down_blocks.{index}.{rest}"
    stage, position = divmod(int(index), UP_STAGE)
    part = "upsamplers.0" if position == UP_STAGE - 1 else f"resnets.{position}"
    return f"up_blocks.{stage}.{part}.{rest}"


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    """`name` with what stands before `.weight`, `.bias` or `.gamma` looked up in `parts`."""
    found = _END.fullmatch(name)
    return name if found is None else f"{parts.get(found['part'], found['part'])}.{found['end']}"
