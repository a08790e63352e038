"""A canary for weight sync: the same fixed input through the learner's and a rollout actor's policy.

Checksums prove that bytes arrived; only outputs prove that they are used.
"""

from __future__ import annotations

import torch
from torch import nn

from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.context import ContextRule

NUM_LATENT_FRAMES = 2  # both in one chunk: temporal attention takes part
NUM_PATCHES = 2  # per side
TIMESTEP = 500.0


@torch.no_grad()
def probe_output(model: nn.Module, architecture: WanArchitecture, seed: int) -> list[float]:
    """Flow that `model` predicts on a small input drawn from `seed`, flattened, as float32 numbers.

    `model` is a CausalWanModel, or a PEFT model or engine around one, with the adapter to probe
    active. The input is drawn on the CPU, so that it is the same on every device. Deterministic.
    """
    a = architecture
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    _, patch_height, patch_width = a.patch
    shape = (1, NUM_LATENT_FRAMES, a.in_channels, NUM_PATCHES * patch_height, NUM_PATCHES * patch_width)
    latents = torch.randn(shape, generator=generator).to(device)
    text = torch.randn(1, a.text_len, a.text_dim, generator=generator).to(device)
    timesteps = torch.full((1, NUM_LATENT_FRAMES), TIMESTEP, device=device)
    rule = ContextRule(chunk_frames=NUM_LATENT_FRAMES, window_frames=None, sink_frames=0)
    return model(latents, timesteps, text, rule).float().flatten().tolist()
