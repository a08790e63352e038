"""Everything that samples and decodes videos, loaded and placed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.sampler import Sampler
from astrolabe_ray.algorithms.flow_matching import warped_timesteps
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.models.registry import files_of, load_transformer
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import choose_kernel
from astrolabe_ray.models.wan.transformer import CausalWanModel


@dataclass(frozen=True)
class LoadedModels:
    """The models of a process that samples."""

    transformer: CausalWanModel
    text_encoder: TextEncoder
    vae: VideoVAE
    sampler: Sampler

    @property
    def description(self) -> str:
        """How this process samples. Example: `flash3 attention in bfloat16 on NVIDIA H100 80GB HBM3`."""
        model, device = self.transformer, self.transformer.head.modulation.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return f"{model.attention_kernel} attention in {str(model.dtype).removeprefix('torch.')} on {where}"


def load_models(
    m: ModelConfig,
    device: torch.device,
    home: torch.device | None = None,
    *,
    text_encoder_on_host: bool = False,
) -> LoadedModels:
    """The transformer on `device`; text encoder and VAE at `home`, by default there, too. With
    `text_encoder_on_host` the text encoder's weights stay in host memory between prompts.

    Raises ConfigError when files are absent or do not fit, or the attention kernel cannot run.
    """
    files, dtype, home = files_of(m), getattr(torch, m.dtype), home or device
    transformer = load_transformer(files, dtype, device)
    transformer.use_attention(choose_kernel(m.attention, device, dtype))
    text_len = transformer.architecture.text_len
    rule = ContextRule(m.chunk_frames, m.window_frames, m.sink_frames, m.rope)
    timesteps = warped_timesteps(m.denoising_steps, m.timestep_shift)
    return LoadedModels(
        transformer,
        TextEncoder.load(
            files.text_encoder, files.tokenizer, text_len, home, dtype, on_host=text_encoder_on_host
        ),
        VideoVAE.load(files.vae, home, dtype),
        Sampler(transformer, rule, timesteps, m.context_timestep),
    )
