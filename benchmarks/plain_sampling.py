"""Cached sampling as it is usually written, to compare with: the arithmetic is that of `actors.sampler`.

Per call everything is allocated anew. Per forward every layer copies its whole cache, rotates all keys it
holds, in float64 and for the positions that they have in the window, and asks the device for its indices;
the text embedding runs again. Every chunk, the last one too, gets a clean pass.

Legend: B batch, T latent frames, C channels, H height, W width, L tokens, S tokens of a latent frame, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astrolabe_ray.algorithms.flow_matching import NUM_TIMESTEPS, add_noise, flow_to_x0
from astrolabe_ray.models.wan.attention import Attend, attend
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.rope import frame_rotations
from astrolabe_ray.models.wan.transformer import CausalWanModel, TextKV


class CopiedCache:
    """Un-rotated keys and values, one pair of buffers per layer; the newest frames at the end."""

    def __init__(
        self, model: CausalWanModel, rule: ContextRule, batch: int, num_frames: int, grid: tuple[int, int]
    ) -> None:
        size = num_frames if rule.window_frames is None else min(num_frames, rule.window_frames)
        arch, device = model.architecture, model.head.modulation.device
        self.grid, self.rule, self.size = grid, rule, size
        self.tokens = grid[0] * grid[1]
        shape = (batch, size * self.tokens, arch.num_heads, arch.head_dim)
        self.keys = [torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(arch.num_layers)]
        self.values = [torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(arch.num_layers)]
        self.frames: list[int] = []  # held, oldest first, the current chunk included
        self.chunk_frames = 0
        self.held_end = torch.zeros(1, dtype=torch.long, device=device)  # tokens, kept on the device

    def begin(self, frames: Sequence[int]) -> None:
        """Drop the oldest frames behind the sink until `frames` fit, and take them in."""
        sink = self.rule.sink_frames
        num_dropped = max(0, len(self.frames) + len(frames) - self.size)
        for number, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if num_dropped:
                first, last = (sink + num_dropped) * self.tokens, len(self.frames) * self.tokens
                target = slice(sink * self.tokens, sink * self.tokens + last - first)
                self.keys[number], self.values[number] = keys.clone(), values.clone()
                self.keys[number][:, target] = keys[:, first:last]
                self.values[number][:, target] = values[:, first:last]
        del self.frames[sink : sink + num_dropped]
        self.frames += frames
        self.chunk_frames = len(frames)
        self.held_end.fill_(len(self.frames) * self.tokens)

    def attention(self, layer: int) -> Attend:
        """Copy the layer's cache, write the chunk into the copy, rotate it all, attend, keep the copy."""

        def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
            end = int(self.held_end.item())
            first = end - k_BLHD.shape[1]
            keys, values = self.keys[layer].clone(), self.values[layer].clone()
            keys[:, first:end], values[:, first:end] = k_BLHD, v_BLHD
            self.keys[layer], self.values[layer] = keys, values
            rotated = rotated_float64(keys[:, :end], self._positions(), self.grid)
            queries = rotated_float64(q_BLHD, self._positions()[-self.chunk_frames :], self.grid)
            return attend(queries, rotated, values[:, :end])

        return run

    def _positions(self) -> list[int]:
        return list(range(len(self.frames))) if self.rule.rope == "relative" else list(self.frames)


def rotated_float64(x_BLHD: Tensor, positions: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Rotate frames to temporal `positions` in complex128, sample by sample."""
    rotations = torch.cat(
        [frame_rotations(x_BLHD.shape[-1], p, 1, grid, x_BLHD.device) for p in positions]
    ).to(torch.complex128)
    videos = []
    for video_LHD in x_BLHD:
        pairs = torch.view_as_complex(video_LHD.double().unflatten(-1, (-1, 2)))
        videos.append(torch.view_as_real(pairs * rotations).flatten(-2))
    return torch.stack(videos).to(x_BLHD.dtype)


@torch.no_grad()
def plain_sample(
    model: CausalWanModel,
    rule: ContextRule,
    timesteps: Sequence[float],
    text_BLD: Tensor,
    seeds: Sequence[int],
    num_latent_frames: int,
    height_latent: int,
    width_latent: int,
) -> Tensor:
    """Clean latents [B, T, C, H, W]: those of `Sampler` with the same seeds, up to rounding."""
    grid = model.architecture.grid(height_latent, width_latent)
    cache = CopiedCache(model, rule, len(seeds), num_latent_frames, grid)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    device = model.head.modulation.device

    def noise(frames: int) -> Tensor:
        shape = (frames, model.architecture.in_channels, height_latent, width_latent)
        return torch.stack([torch.randn(*shape, generator=g) for g in generators]).to(device)

    initial_BTCHW = noise(num_latent_frames)
    text_kv = model.encode_text(text_BLD).expand(len(seeds))
    chunks = []
    for start, end in rule.chunks(num_latent_frames):
        cache.begin(range(start, end))
        x_BTCHW = initial_BTCHW[:, start:end]
        for number, timestep in enumerate(timesteps):
            flow = plain_flow(model, x_BTCHW, timestep, text_BLD, text_kv, cache)
            x_BTCHW = flow_to_x0(x_BTCHW, flow, timestep / NUM_TIMESTEPS)
            if number + 1 < len(timesteps):
                sigma = timesteps[number + 1] / NUM_TIMESTEPS
                x_BTCHW = add_noise(x_BTCHW, noise(end - start), sigma)
        chunks.append(x_BTCHW)
        plain_flow(model, x_BTCHW, 0.0, text_BLD, text_kv, cache)
    return torch.cat(chunks, dim=1)


def plain_flow(
    model: CausalWanModel,
    x_BTCHW: Tensor,
    timestep: float,
    text_BLD: Tensor,
    text_kv: TextKV,
    cache: CopiedCache,
) -> Tensor:
    """One cached forward; the embedded text is computed and, as its keys are kept, thrown away."""
    model._embed_text(text_BLD.expand(len(x_BTCHW), -1, -1))
    t_BT = torch.full(x_BTCHW.shape[:2], timestep, device=x_BTCHW.device)
    x_BTSD, e_BTD = model._embed(x_BTCHW, t_BT)
    modulation = model._modulation(e_BTD)
    for layer, block in enumerate(model.blocks):
        x_BTSD = block(
            x_BTSD, modulation, (text_kv.keys[layer], text_kv.values[layer]), cache.attention(layer)
        )
    return model.head(x_BTSD, e_BTD, cache.grid)
