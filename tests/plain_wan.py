"""The causal Wan model written slowly and plainly, as an oracle: no cache, no slices, frame by frame.

Everything is in float64. A stream of frames goes through the layers together; each query frame says
which key frames it sees and at which temporal positions it and they stand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.transformer import CausalWanModel


@dataclass(frozen=True)
class View:
    """What one query frame sees: rows of the stream as keys, and temporal positions."""

    position: int
    key_rows: tuple[int, ...]
    key_positions: tuple[int, ...]


def window_lists(rule: ContextRule, num_frames: int) -> list[list[int]]:
    """Frames in view of each chunk, by keeping a list: before a chunk is appended, frames just
    behind the sink are dropped until all fit the window.
    """
    held: list[int] = []
    views = []
    for start in range(0, num_frames, rule.chunk_frames):
        chunk = list(range(start, min(start + rule.chunk_frames, num_frames)))
        while rule.window_frames is not None and len(held) + len(chunk) > rule.window_frames:
            del held[rule.sink_frames]
        held = held + chunk
        views.append(list(held))
    return views


def chunk_views(
    rule: ContextRule, frames: list[int], num_chunk: int, rows: Callable[[int], int]
) -> list[View]:
    """Views of the newest `num_chunk` of `frames`; `rows` says where a frame lies in the stream."""
    relative = rule.rope == "relative"
    positions = tuple(range(len(frames))) if relative else tuple(frames)
    key_rows = tuple(rows(frame) for frame in frames)
    return [View(position, key_rows, positions) for position in positions[-num_chunk:]]


def plain_flow(
    model: CausalWanModel,
    x_BTCHW: Tensor,
    t_BT: Tensor,
    text_BLD: Tensor,
    views: Sequence[View],
) -> Tensor:
    """Flow of every frame of a stream; `views[i]` belongs to frame i. Returns float64 [B, T, C, H, W].

    `text_BLD` may be [B, T, L, D]: a text of its own for each frame.
    """
    arch = model.architecture
    w = {name: value.detach().double() for name, value in model.state_dict().items()}
    batch, frames, _, height, width = x_BTCHW.shape
    rows, columns = height // 2, width // 2

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def layer_norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + arch.eps)

    def rms_norm(x: Tensor, name: str) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + arch.eps) * w[name]

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], arch.num_heads, arch.head_dim)

    def rope(x: Tensor, position: int) -> Tensor:
        """`x` [B, S, H, D] of one frame at a temporal position."""
        pairs = arch.head_dim // 2
        third = pairs // 3
        out = x.clone()
        for token in range(x.shape[1]):
            where = (position, token // columns, token % columns)
            sizes = (pairs - 2 * third, third, third)
            angles = [where[a] * 10000.0 ** (-i / sizes[a]) for a in range(3) for i in range(sizes[a])]
            for j, angle in enumerate(angles):
                real, imaginary = x[:, token, :, 2 * j], x[:, token, :, 2 * j + 1]
                out[:, token, :, 2 * j] = real * math.cos(angle) - imaginary * math.sin(angle)
                out[:, token, :, 2 * j + 1] = real * math.sin(angle) + imaginary * math.cos(angle)
        return out

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(arch.head_dim)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).flatten(2)

    kernel = w["patch_embedding.weight"][:, :, 0]
    x = torch.nn.functional.conv2d(
        x_BTCHW.double().flatten(0, 1), kernel, w["patch_embedding.bias"], stride=2
    )
    x = x.flatten(2).transpose(1, 2).reshape(batch, frames, rows * columns, arch.dim)
    half = arch.freq_dim // 2
    angle = t_BT.double()[..., None] * torch.tensor([10000.0 ** (-j / half) for j in range(half)]).double()
    e = torch.cat([angle.cos(), angle.sin()], -1)
    e = linear(silu(linear(e, "time_embedding.0")), "time_embedding.2")
    e6 = linear(silu(e), "time_projection.1").reshape(batch, frames, 6, arch.dim)
    texts = text_BLD if text_BLD.dim() == 4 else text_BLD[:, None].expand(-1, frames, -1, -1)
    text = torch.zeros(batch, frames, arch.text_len, arch.text_dim, dtype=torch.float64)
    text[:, :, : texts.shape[2]] = texts
    text = linear(gelu(linear(text, "text_embedding.0")), "text_embedding.2")

    for i in range(arch.num_layers):
        b = f"blocks.{i}"
        m = [(w[f"{b}.modulation"][:, j] + e6[:, :, j])[:, :, None] for j in range(6)]
        y = layer_norm(x) * (1 + m[1]) + m[0]
        q = heads(rms_norm(linear(y, f"{b}.self_attn.q"), f"{b}.self_attn.norm_q.weight"))
        k = heads(rms_norm(linear(y, f"{b}.self_attn.k"), f"{b}.self_attn.norm_k.weight"))
        v = heads(linear(y, f"{b}.self_attn.v"))
        seen = []
        for frame, view in enumerate(views):
            placed = zip(view.key_rows, view.key_positions, strict=True)
            keys = torch.cat([rope(k[:, row], position) for row, position in placed], dim=1)
            values = torch.cat([v[:, row] for row in view.key_rows], dim=1)
            seen.append(attention(rope(q[:, frame], view.position), keys, values))
        x = x + linear(torch.stack(seen, 1), f"{b}.self_attn.o") * m[2]
        y = layer_norm(x) * w[f"{b}.norm3.weight"] + w[f"{b}.norm3.bias"]
        q = heads(rms_norm(linear(y, f"{b}.cross_attn.q"), f"{b}.cross_attn.norm_q.weight"))
        k = heads(rms_norm(linear(text, f"{b}.cross_attn.k"), f"{b}.cross_attn.norm_k.weight"))
        v = heads(linear(text, f"{b}.cross_attn.v"))
        y = torch.stack([attention(q[:, frame], k[:, frame], v[:, frame]) for frame in range(frames)], 1)
        x = x + linear(y, f"{b}.cross_attn.o")
        y = layer_norm(x) * (1 + m[4]) + m[3]
        x = x + linear(gelu(linear(y, f"{b}.ffn.0")), f"{b}.ffn.2") * m[5]

    shift, scale = ((w["head.modulation"][:, j] + e)[:, :, None] for j in range(2))
    y = linear(layer_norm(x) * (1 + scale) + shift, "head.head")
    flow = torch.zeros(batch, frames, arch.out_channels, height, width, dtype=torch.float64)
    for token in range(rows * columns):
        row, column = token // columns * 2, token % columns * 2
        patch = y[:, :, token].reshape(batch, frames, 2, 2, arch.out_channels).permute(0, 1, 4, 2, 3)
        flow[:, :, :, row : row + 2, column : column + 2] = patch
    return flow


def plain_sample(
    model: CausalWanModel,
    rule: ContextRule,
    timesteps: Sequence[float],
    context_timestep: float,
    text_BLD: Tensor,
    seeds: Sequence[int],
    shape: tuple[int, int, int, int],
) -> Tensor:
    """Sample videos of `shape` [T, C, H, W] by recomputing all earlier clean frames in every call."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators]).double()
    lists = window_lists(rule, shape[0])
    clean = noise[:, :0]
    clean_views: list[View] = []
    for frames in lists:
        start = clean.shape[1]
        size = frames[-1] + 1 - start
        views = chunk_views(rule, frames, size, lambda frame: frame)
        x = noise[:, start : start + size]
        for index, timestep in enumerate(timesteps):
            t = torch.full((len(seeds), start + size), context_timestep)
            t[:, start:] = timestep
            stream = torch.cat([clean, x], 1)
            flow = plain_flow(model, stream, t, text_BLD, [*clean_views, *views])[:, start:]
            x = x - timestep / 1000 * flow
            if index + 1 < len(timesteps):
                sigma = timesteps[index + 1] / 1000
                eps = torch.stack([torch.randn(size, *shape[1:], generator=g) for g in generators])
                x = (1 - sigma) * x + sigma * eps.double()
        clean = torch.cat([clean, x], 1)
        clean_views += views
    return clean
