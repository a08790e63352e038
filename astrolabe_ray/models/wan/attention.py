"""Self-attention of a whole video, chunk by chunk, as plain unmasked attention over slices.

Each chunk's queries attend to exactly the frames that cached sampling would show them, so training
needs no mask: half the arithmetic of a dense one, and every attention kernel can run it. A sequence may
start within a video: the keys and values of the frames before it then come from elsewhere (`Past`).

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
Past = Callable[[int, int], tuple[list[Tensor], list[Tensor]]]
"""Rotated keys and values [B, L, H, D] of one layer for frames `first..last`, in one piece or several. B may
be 1: then all samples of the batch have the same."""


@dataclass(frozen=True)
class ChunkSpan:
    """Queries and keys of one chunk, in frames of the past and the sequence behind it; `keys` runs come
    oldest first."""

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


def clean_context_spans(
    rule: ContextRule, num_frames: int, num_clean: int, first_frame: int = 0, first_clean: int = 0
) -> list[ChunkSpan]:
    """Spans of clean frames `first_clean..num_clean`, then of noisy ones `first_frame..num_frames`.

    Clean chunks see clean frames. A noisy chunk sees the clean frames before it and itself, which is
    what it sees in sampling. Both firsts are where a chunk starts; clean frames before `first_clean` are
    the past.
    """
    clean = [span for span in noisy_context_spans(rule, num_clean) if span.query[0] >= first_clean]
    noisy = []
    for start, end in rule.chunks(num_frames):
        if start >= first_frame:
            own = (num_clean + start - first_frame, num_clean + end - first_frame)
            noisy.append(ChunkSpan(own, (*rule.visible(start, end), own), rule.sink_shift(end)))
    return clean + noisy


def span_attention(
    spans: list[ChunkSpan], rotations: Tensor, kernel: Kernel, past: Past | None = None
) -> Attend:
    """Attention of a whole sequence along `spans`, which cover its frames in order.

    `rotations` [L, 1, D/2]: rotary positions of the whole sequence. `past`: needed if it starts behind
    the video's first frame.
    """
    first_frame, last_frame = spans[0].query[0], spans[-1].query[1]

    def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        tokens = q_BLHD.shape[1] // (last_frame - first_frame)
        q_BLHD, k_BLHD = rotate(q_BLHD, rotations), rotate(k_BLHD, rotations)

        def seen(first: int, last: int) -> tuple[Tensor, Tensor]:
            keys, values = [], []
            if first < first_frame:
                assert past is not None, "a sequence that starts within a video needs its past"
                runs = past(first, min(last, first_frame))
                keys, values = ([part.expand(len(k_BLHD), -1, -1, -1) for part in run] for run in runs)
            if last > first_frame:
                own = slice((max(first, first_frame) - first_frame) * tokens, (last - first_frame) * tokens)
                keys, values = [*keys, k_BLHD[:, own]], [*values, v_BLHD[:, own]]
            return _joined(keys), _joined(values)

        outputs = []
        for span in spans:
            query = slice(*((frame - first_frame) * tokens for frame in span.query))
            keys, values = map(list, zip(*(seen(*run) for run in span.keys), strict=True))
            if span.sink_shift:
                keys[0] = rotate(keys[0], time_shift(k_BLHD.shape[-1], span.sink_shift, k_BLHD.device))
            outputs.append(kernel(q_BLHD[:, query], _joined(keys), _joined(values)))
        return torch.cat(outputs, dim=1)

    return run


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
