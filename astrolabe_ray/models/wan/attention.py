"""Self-attention of a whole video, chunk by chunk, as plain unmasked attention over slices.

Each chunk's queries attend to exactly the frames that cached sampling would show them, so training
needs no mask: half the arithmetic of a dense one, and every attention kernel can run it.

Legend: B batch, L tokens, S tokens of a latent frame, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import Kernel
from astrolabe_ray.models.wan.rope import rotate, time_shift

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Self-attention of a call: un-rotated queries, keys and values [B, L, H, D] -> [B, L, H, D]."""


@dataclass(frozen=True)
class ChunkSpan:
    """Queries and keys of one chunk, in frames of the sequence; `keys` runs come oldest first."""

    query: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    sink_shift: int  # frames by which the first run's positions move on; 0: as they are


def noisy_context_spans(rule: ContextRule, num_frames: int) -> list[ChunkSpan]:
    """Spans of one stream of `num_frames` frames whose chunks see earlier chunks as they are."""
    spans = []
    for start, end in rule.chunks(num_frames):
        *earlier, (first, last) = rule.visible(start, end) or [(start, start)]
        keys = [*earlier, (first, end)] if last == start else [*earlier, (first, last), (start, end)]
        spans.append(ChunkSpan((start, end), tuple(keys), rule.sink_shift(end)))
    return spans


def clean_context_spans(rule: ContextRule, num_frames: int, num_clean: int) -> list[ChunkSpan]:
    """Spans of `num_clean` clean frames followed by all `num_frames` noisy ones.

    Clean chunks see clean frames. A noisy chunk sees the clean frames before it and itself, which is
    what it sees in sampling.
    """
    noisy = [
        ChunkSpan(
            (num_clean + start, num_clean + end),
            (*rule.visible(start, end), (num_clean + start, num_clean + end)),
            rule.sink_shift(end),
        )
        for start, end in rule.chunks(num_frames)
    ]
    return noisy_context_spans(rule, num_clean) + noisy


def span_attention(spans: list[ChunkSpan], rotations: Tensor, kernel: Kernel) -> Attend:
    """Attention of a whole sequence along `spans`, which cover its frames in order.

    `rotations` [L, 1, D/2]: rotary positions of the whole sequence.
    """
    num_frames = spans[-1].query[1]

    def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        tokens = q_BLHD.shape[1] // num_frames
        q_BLHD, k_BLHD = rotate(q_BLHD, rotations), rotate(k_BLHD, rotations)
        outputs = []
        for span in spans:
            first, last = (frame * tokens for frame in span.query)
            keys = [k_BLHD[:, a * tokens : b * tokens] for a, b in span.keys]
            values = [v_BLHD[:, a * tokens : b * tokens] for a, b in span.keys]
            if span.sink_shift:
                keys[0] = rotate(keys[0], time_shift(k_BLHD.shape[-1], span.sink_shift, k_BLHD.device))
            outputs.append(kernel(q_BLHD[:, first:last], _joined(keys), _joined(values)))
        return torch.cat(outputs, dim=1)

    return run


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
