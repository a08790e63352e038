"""Cached sampling as it is usually written, to compare with: the arithmetic is that of `actors.sampler`.

Per call everything is allocated anew. Per forward every layer copies its whole cache, makes its changes in
the copy, rotates all keys it holds, in complex128, sample by sample and for the positions that they have
in the window, joins sink and window, and asks the device for its indices; afterwards the changes are made
in the cache itself. Text and time embeddings run again in every forward, the time embedding for every
frame. Every chunk, the last one too, gets a clean pass.

Legend: B batch, T latent frames, C channels, H height, W width, L tokens, S tokens of a latent frame, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from astrolabe_ray.algorithms.flow_matching import NUM_TIMESTEPS, add_noise, flow_to_x0
from astrolabe_ray.models.wan.attention import Attend
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import KERNELS
from astrolabe_ray.models.wan.rope import axis_sizes
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
        self.attend = KERNELS[model.attention_kernel]
        self.axes = axis_tables(arch.head_dim, max(num_frames, *grid), device)
        shape = (batch, size * self.tokens, arch.num_heads, arch.head_dim)
        self.buffers = [
            tuple(torch.zeros(shape, dtype=model.dtype, device=device) for _ in "kv")
            for _ in range(arch.num_layers)
        ]
        self.frames: list[int] = []  # held, oldest first, the current chunk included
        self.chunk_frames = 0
        self.num_dropped = 0  # frames that the chunk's first forward has to move out
        self.held_end = torch.zeros(1, dtype=torch.long, device=device)  # tokens, kept on the device
        self.changes: list[tuple[Tensor, Tensor]] = []  # keys and values of the chunk, by layer

    def begin(self, frames: Sequence[int]) -> None:
        """Take in `frames`; the oldest ones behind the sink have to go until all fit."""
        self.num_dropped = max(0, len(self.frames) + len(frames) - self.size)
        del self.frames[self.rule.sink_frames : self.rule.sink_frames + self.num_dropped]
        self.frames += frames
        self.chunk_frames = len(frames)
        self.held_end.fill_(len(self.frames) * self.tokens)

    def attention(self, layer: int) -> Attend:
        """Change a copy of the layer's cache, rotate it all, attend."""

        def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
            keys, values = (buffer.clone() for buffer in self.buffers[layer])
            end = self._change(keys, k_BLHD)
            self._change(values, v_BLHD)
            self.changes.append((k_BLHD, v_BLHD))
            keys = self._rotated(keys[:, :end], self._positions())
            queries = self._rotated(q_BLHD, self._positions()[-self.chunk_frames :])
            values = values[:, :end]
            sink = self.rule.sink_frames * self.tokens
            if 0 < sink < end:
                keys, values = (torch.cat([x[:, :sink], x[:, sink:]], dim=1) for x in (keys, values))
            return self.attend(queries, keys, values)

        return run

    def apply(self) -> None:
        """Make the changes of the forward that has ended in the cache itself."""
        for (keys, values), (k_BLHD, v_BLHD) in zip(self.buffers, self.changes, strict=True):
            self._change(keys, k_BLHD)
            self._change(values, v_BLHD)
        self.changes.clear()
        self.num_dropped = 0

    def _change(self, buffer: Tensor, chunk_BLHD: Tensor) -> int:
        """Move frames out and write the chunk behind the rest; returns where it ends."""
        end = int(self.held_end.item())
        first = end - chunk_BLHD.shape[1]
        if self.num_dropped:
            sink = self.rule.sink_frames * self.tokens
            moved = buffer[:, sink + self.num_dropped * self.tokens :].clone()
            buffer[:, sink : sink + moved.shape[1]] = moved
        buffer[:, first:end] = chunk_BLHD
        return end

    def _positions(self) -> list[int]:
        return list(range(len(self.frames))) if self.rule.rope == "relative" else list(self.frames)

    def _rotated(self, x_BLHD: Tensor, positions: Sequence[int]) -> Tensor:
        """`x_BLHD` with its frames at temporal `positions`."""
        (time, row, column), (rows, columns) = self.axes, self.grid
        shape = (len(positions), rows, columns, -1)
        videos = []
        for video_LHD in x_BLHD:
            parts = (time[positions][:, None, None], row[None, :rows, None], column[None, None, :columns])
            rotations = torch.cat([part.expand(shape) for part in parts], dim=-1).flatten(0, 2)[:, None]
            pairs = torch.view_as_complex(video_LHD.double().unflatten(-1, (-1, 2)))
            videos.append(torch.view_as_real(pairs * rotations).flatten(-2))
        return torch.stack(videos).to(x_BLHD.dtype)


def axis_tables(head_dim: int, num_positions: int, device: torch.device) -> tuple[Tensor, ...]:
    """Rotations [positions, pairs] complex128 of time, rows and columns."""
    tables = []
    for pairs in axis_sizes(head_dim):
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequencies)
        tables.append(torch.polar(torch.ones_like(angles), angles).to(device))
    return tuple(tables)


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
    x_BTSD, e_BTD = model.patch_embedding(x_BTCHW.to(model.dtype)), model._embed_time(t_BT)
    e_BT16D = model._project_time(e_BTD).unsqueeze(2)
    for layer, block in enumerate(model.blocks):
        text = (text_kv.keys[layer], text_kv.values[layer])
        x_BTSD = block(x_BTSD, e_BT16D, text, cache.attention(layer))
    cache.apply()
    return model.head(x_BTSD, e_BTD.unsqueeze(2), cache.grid)
