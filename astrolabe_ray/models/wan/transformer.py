"""The causal Wan transformer: flow of noisy latents given text, with the original parameter names.

Two ways through the same blocks: `train_forward` runs a whole video at once with gradients;
`chunk_forward` runs one chunk against a `KVCache`. Both see the same frames (`ContextRule`).

Legend: B batch, T latent frames, C channels, H height, W width, S patches of a frame, L text
tokens, D dim. Latents are normalised; timesteps are in 0..1000.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.attention import clean_context_spans, noisy_context_spans, span_attention
from astrolabe_ray.models.wan.blocks import Block, FlowHead, PatchEmbedding, Steering, timestep_sinusoid
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kept_attention import attention_kept
from astrolabe_ray.models.wan.kernels import KERNELS, KernelName
from astrolabe_ray.models.wan.kv_cache import KVCache, SharedPast
from astrolabe_ray.models.wan.rope import frame_rotations


@dataclass(frozen=True)
class TextKV:
    """Cross-attention keys and values of a batch of prompts: one [B, text_len, heads, head_dim] per layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def expand(self, batch: int) -> TextKV:
        """The same single prompt for `batch` videos, without copying."""
        return TextKV(
            tuple(k.expand(batch, -1, -1, -1) for k in self.keys),
            tuple(v.expand(batch, -1, -1, -1) for v in self.values),
        )


@dataclass(frozen=True)
class TimestepSteering:
    """What a timestep makes of every block and of the head, for all frames alike; from `at_timestep`."""

    blocks: tuple[Steering, ...]
    head: tuple[Tensor, Tensor]


class CausalWanModel(nn.Module):
    """Chunk-causal video transformer of the Wan 2.1 family, any size.

    Set `gradient_checkpointing` to recompute each block in the backward pass, and `keep_attention` to keep
    the results of attention meanwhile.
    """

    def __init__(self, architecture: WanArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.gradient_checkpointing = self.keep_attention = False
        self.attention_kernel: KernelName = "sdpa"
        dim = architecture.dim
        self.patch_embedding = PatchEmbedding(architecture)
        self.text_embedding = nn.Sequential(
            nn.Linear(architecture.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(architecture.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(architecture.num_layers))
        self.head = FlowHead(architecture)
        self._initialise()

    def forward(
        self,
        noisy_BTCHW: Tensor,
        t_BT: Tensor,
        text_BLD: Tensor,
        context: ContextRule,
        clean_BTCHW: Tensor | None = None,
        context_timestep: float = 0.0,
        detach_context: bool = True,
        shared_past: SharedPast | None = None,
    ) -> Tensor:
        """`train_forward`; named so that wrappers (PEFT, DeepSpeed) call it."""
        how = (context, clean_BTCHW, context_timestep, detach_context, shared_past)
        return self.train_forward(noisy_BTCHW, t_BT, text_BLD, *how)

    def train_forward(
        self,
        noisy_BTCHW: Tensor,
        t_BT: Tensor,
        text_BLD: Tensor,
        context: ContextRule,
        clean_BTCHW: Tensor | None = None,
        context_timestep: float = 0.0,
        detach_context: bool = True,
        shared_past: SharedPast | None = None,
    ) -> Tensor:
        """Flow [B, T, C, H, W] of every frame of a video, or of a window of it.

        Without `clean_BTCHW` chunks see the noisy earlier frames. With it they see those clean frames,
        embedded at `context_timestep`: exactly what sampling with a KV cache sees. If it is longer, the
        noisy frames are the video's last ones and start where a chunk does: frames before them give
        keys and values only, without gradient and in the memory of a KV cache, or, without
        `detach_context`, like all other clean frames. `text_BLD`: text encoder output, up to text_len rows.
        `shared_past`: all samples have the same text and frames before the window, and these need computing
        only if it is empty; without `detach_context` it is not looked at.
        """
        num_frames = noisy_BTCHW.shape[1]
        grid = self.architecture.grid(*noisy_BTCHW.shape[-2:])
        device, text_BLD, past = noisy_BTCHW.device, self._embed_text(text_BLD), None
        if clean_BTCHW is None:
            rotations = frame_rotations(self.architecture.head_dim, 0, num_frames, grid, device)
            frames_BTCHW, spans = noisy_BTCHW, noisy_context_spans(context, num_frames)
        else:
            end = clean_BTCHW.shape[1]
            first = end - num_frames
            num_clean = context.chunks(end)[-1][0]  # nothing sees the last chunk's clean frames
            first_clean = first if detach_context else 0
            own_clean_BTCHW = clean_BTCHW[:, first_clean:num_clean]
            if first_clean > 0:
                before = (clean_BTCHW[:, :first], text_BLD, context, context_timestep, grid)
                past = self._past(*before) if shared_past is None else self._common_past(shared_past, *before)
            frames_BTCHW = torch.cat([own_clean_BTCHW, noisy_BTCHW], dim=1)
            t_BT = torch.cat([t_BT.new_full(own_clean_BTCHW.shape[:2], context_timestep), t_BT], dim=1)
            places = ((first_clean, num_clean - first_clean), (first, num_frames))
            rotations = torch.cat(
                [frame_rotations(self.architecture.head_dim, *place, grid, device) for place in places]
            )
            spans = clean_context_spans(context, end, num_clean, first, first_clean)
        x_BTSD, e_BTD = self.patch_embedding(frames_BTCHW.to(self.dtype)), self._embed_time(t_BT)
        e_BT16D = self._project_time(e_BTD).unsqueeze(2)
        kernel = KERNELS[self.attention_kernel]
        for layer, block in enumerate(self._blocks):
            seen = None if past is None else partial(past.read, layer)
            inputs = (x_BTSD, e_BT16D, text_BLD, span_attention(spans, rotations, kernel, seen))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                what_stays = attention_kept if self.keep_attention else noop_context_fn
                x_BTSD = checkpoint(block, *inputs, use_reentrant=False, context_fn=what_stays)
            else:
                x_BTSD = block(*inputs)
        return self.head(x_BTSD[:, -num_frames:], e_BTD[:, -num_frames:].unsqueeze(2), grid)

    def _common_past(self, shared: SharedPast, clean_BTCHW: Tensor, text_BLD: Tensor, *where: Any) -> KVCache:
        """`_past` of one video, which stands for all, computed once."""
        if shared.cache is None:
            shared.cache = self._past(clean_BTCHW[:1], text_BLD[:1], *where)
        return shared.cache

    @torch.no_grad()
    def _past(
        self,
        clean_BTCHW: Tensor,
        text_BLD: Tensor,
        context: ContextRule,
        context_timestep: float,
        grid: tuple[int, int],
    ) -> KVCache:
        """Keys and values of clean frames from the video's start on, as far as the window holds them.

        `text_BLD` is embedded already. Through the blocks' own calls, which wrappers rely on.
        """
        num_frames, device, kernel = clean_BTCHW.shape[1], clean_BTCHW.device, KERNELS[self.attention_kernel]
        cache = KVCache(
            self.architecture,
            context,
            batch=len(clean_BTCHW),
            num_frames=num_frames,
            grid=grid,
            dtype=self.dtype,
            device=device,
        )
        text = [block.cross_attn.keys_values(text_BLD) for block in self._blocks]
        e_116D = self._project_time(self._embed_time(torch.full((1, 1), context_timestep, device=device)))
        e_1116D = e_116D.unsqueeze(2)
        for start, end in context.chunks(num_frames):
            cache.begin(end - start)
            rotations = frame_rotations(self.architecture.head_dim, start, end - start, grid, device)
            x_BTSD = self.patch_embedding(clean_BTCHW[:, start:end].to(self.dtype))
            for layer, block in enumerate(self._blocks):
                attention = cache.attention(layer, rotations, kernel)
                x_BTSD = block(x_BTSD, e_1116D, text[layer], attention)
        return cache

    @torch.inference_mode()
    def chunk_forward(
        self, x_BTCHW: Tensor, steering: TimestepSteering, text: TextKV, cache: KVCache
    ) -> Tensor:
        """Flow [B, T, C, H, W] of the chunk that `cache.begin(T)` started; stores its keys and values.

        Nothing here waits for the device.
        """
        assert x_BTCHW.shape[1] == cache.chunk_frames, "call cache.begin with this chunk's frames first"
        rotations = frame_rotations(
            self.architecture.head_dim, cache.first_frame, cache.chunk_frames, cache.grid, x_BTCHW.device
        )
        kernel = KERNELS[self.attention_kernel]
        x_BTSD = self.patch_embedding(x_BTCHW.to(self.dtype))
        for layer, block in enumerate(self._blocks):
            text_KV = (text.keys[layer], text.values[layer])
            attention = cache.attention(layer, rotations, kernel)
            x_BTSD = block.steered(x_BTSD, steering.blocks[layer], text_KV, attention)
        return self.head.steered(x_BTSD, steering.head, cache.grid)

    @torch.no_grad()
    def at_timestep(self, timestep: float) -> TimestepSteering:
        """The time embedding's effect at a timestep (0..1000), to be used by any number of chunks."""
        e_D = self._embed_time(torch.tensor(timestep, device=self.head.modulation.device))
        e_6D = self._project_time(e_D)
        return TimestepSteering(tuple(b.steering(e_6D) for b in self._blocks), self.head.steering(e_D))

    def use_attention(self, name: KernelName) -> None:
        """Compute every attention with this kernel; see `choose_kernel`."""
        self.attention_kernel = name
        for block in self._blocks:
            block.cross_attn.kernel = KERNELS[name]

    @torch.no_grad()
    def encode_text(self, text_BLD: Tensor) -> TextKV:
        """Cross-attention keys and values of text encoder output; once per prompt."""
        text_BLD = self._embed_text(text_BLD)
        pairs = [block.cross_attn.keys_values(text_BLD) for block in self._blocks]
        return TextKV(tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base weights and of all activations."""
        return self.head.modulation.dtype

    @property
    def _blocks(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def _embed_time(self, t: Tensor) -> Tensor:
        """Time embedding [..., D] of timesteps [...]."""
        return self.time_embedding(timestep_sinusoid(t, self.architecture.freq_dim).to(self.dtype))

    def _project_time(self, e: Tensor) -> Tensor:
        """Shifts, scales and gates [..., 6, D] that all blocks share."""
        return self.time_projection(e).unflatten(-1, (6, -1))

    def _embed_text(self, text_BLD: Tensor) -> Tensor:
        """Text [B, text_len, D]: missing rows are zeros and attended to, as the model was trained."""
        missing = self.architecture.text_len - text_BLD.shape[1]
        assert missing >= 0, f"text of {text_BLD.shape[1]} rows exceeds text_len {self.architecture.text_len}"
        return self.text_embedding(F.pad(text_BLD.to(self.dtype), (0, 0, 0, missing)))

    def _initialise(self) -> None:
        """Weights of an untrained model: Xavier linears, zero biases and a zero head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for module in (*self.text_embedding, *self.time_embedding):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for owner in (*self._blocks, self.head):
            nn.init.normal_(owner.modulation, std=1 / math.sqrt(self.architecture.dim))
        nn.init.zeros_(self.head.head.weight)
