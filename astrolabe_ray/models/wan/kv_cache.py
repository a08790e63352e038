"""Keys and values of earlier frames, for sampling chunk after chunk.

Sink frames keep the first slots for ever; all others go round a ring behind them, so that evicting
is overwriting. Attention does not care for the order of its keys: what is held is always the first
slots of the buffer, and a full buffer is read whole.

Legend: B batch, L tokens, S tokens of a latent frame, H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.attention import Attend, attend
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.rope import rotate, time_shift


class FrameSlots:
    """Which frame lies in which slot of a cache of `capacity` frames. Integers only."""

    def __init__(self, rule: ContextRule, num_frames: int) -> None:
        """Slots for a video of `num_frames` latent frames, or for any length if the window is shorter."""
        self.rule = rule
        self.capacity = num_frames if rule.window_frames is None else min(num_frames, rule.window_frames)
        self.start = 0  # first frame of the current chunk
        self.end = 0  # frame after it

    @property
    def num_held(self) -> int:
        """Frames in the cache, the current chunk included; they fill the first slots."""
        return min(self.end, self.capacity)

    def begin(self, num_frames: int) -> None:
        """Start the next chunk: its frames take free slots or those of the oldest frames.

        Raises ConfigError if the chunk is longer than the rule's or the cache is too short for it.
        """
        if not 0 < num_frames <= self.rule.chunk_frames:
            raise ConfigError(f"a chunk of {num_frames} frames is not within 1..{self.rule.chunk_frames}")
        end = self.end + num_frames
        if end > self.capacity != self.rule.window_frames:
            raise ConfigError(
                f"frame {end} exceeds a KV cache made for {self.capacity} frames; make it longer"
            )
        self.start, self.end = self.end, end

    def reset(self) -> None:
        """Forget every frame; the next chunk is the first."""
        self.start = self.end = 0

    def slot(self, frame: int) -> int:
        """Slot of a frame that is held."""
        sink = self.rule.sink_frames
        return frame if frame < sink else sink + (frame - sink) % (self.capacity - sink)

    def writes(self) -> list[tuple[int, int, int]]:
        """Runs (frame within the chunk, slot, number of frames) of the chunk: one, or two at a wrap."""
        runs: list[tuple[int, int, int]] = []
        for frame in range(self.start, self.end):
            slot = self.slot(frame)
            if runs and runs[-1][1] + runs[-1][2] == slot:
                offset, first, count = runs.pop()
                runs.append((offset, first, count + 1))
            else:
                runs.append((frame - self.start, slot, 1))
        return runs


class KVCache:
    """Rotated keys and values of every layer: two buffers [layers, B, capacity * S, H, D].

    Use: `begin(frames)` once per chunk, then any number of forwards, each of which overwrites the
    chunk's slots; `reset()` for the next video. Keys carry the rotation of their absolute frame
    index. With relative positions the sink keys are, once frames have been evicted, rotated on so
    that their distance to the window stays that of neighbouring slots.
    """

    def __init__(
        self,
        architecture: WanArchitecture,
        rule: ContextRule,
        *,
        batch: int,
        num_frames: int,
        grid: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`grid`: patch rows and columns of a latent frame; `num_frames`: length of the videos."""
        self.slots = FrameSlots(rule, num_frames)
        self.num_frames = num_frames
        self.grid = grid
        self.tokens = grid[0] * grid[1]
        self.batch = batch
        self._head_dim = architecture.head_dim
        shape = (
            architecture.num_layers,
            batch,
            self.slots.capacity * self.tokens,
            architecture.num_heads,
            architecture.head_dim,
        )
        with torch.inference_mode(False):
            self._keys = torch.zeros(shape, dtype=dtype, device=device)
            self._values = torch.zeros(shape, dtype=dtype, device=device)
        self._sink_keys: Tensor | None = None  # as first written; kept only while positions are shifted
        self._writes: list[tuple[slice, slice]] = []  # tokens of the chunk -> tokens of the buffer

    @property
    def first_frame(self) -> int:
        """Absolute index of the current chunk's first frame."""
        return self.slots.start

    @property
    def chunk_frames(self) -> int:
        """Frames of the current chunk; 0 before the first `begin`."""
        return self.slots.end - self.slots.start

    def begin(self, num_frames: int) -> None:
        """Start the next chunk of `num_frames` latent frames, evicting what the window cannot hold."""
        self.slots.begin(num_frames)
        size = self.tokens
        self._writes = [
            (slice(offset * size, (offset + count) * size), slice(slot * size, (slot + count) * size))
            for offset, slot, count in self.slots.writes()
        ]
        shift = self.slots.rule.sink_shift(self.slots.end)
        if shift:
            self._shift_sink(shift)

    def reset(self) -> None:
        """Forget every frame but keep the memory."""
        self.slots.reset()
        self._sink_keys = None

    def attention(self, layer: int, rotations: Tensor) -> Attend:
        """Self-attention of one layer: store the chunk's keys and values, look at all that is held."""

        def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
            keys, values = self._keys[layer], self._values[layer]
            k_BLHD = rotate(k_BLHD, rotations)
            for chunk, buffer in self._writes:
                keys[:, buffer] = k_BLHD[:, chunk]
                values[:, buffer] = v_BLHD[:, chunk]
            held = self.slots.num_held * self.tokens
            return attend(rotate(q_BLHD, rotations), keys[:, :held], values[:, :held])

        return run

    def _shift_sink(self, num_frames: int) -> None:
        sink = self._keys[:, :, : self.slots.rule.sink_frames * self.tokens]
        if self._sink_keys is None:
            self._sink_keys = sink.clone()
        layers_as_batch = self._sink_keys.flatten(0, 1)
        sink.copy_(rotate(layers_as_batch, time_shift(self._head_dim, num_frames, sink.device)).view_as(sink))
