"""Keys and values of earlier frames, for sampling chunk after chunk.

Sink frames keep the first slots for ever; all others go round a ring behind them, so that evicting
is overwriting. Attention does not care for the order of its keys: what is held is always the first
slots of the buffer, and a full buffer is read whole.

Legend: B batch, L tokens, S tokens of a latent frame, H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.attention import Attend
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import Kernel
from astrolabe_ray.models.wan.rope import rotate, time_shift


class FrameSlots:
    """Which frame lies in which slot of a cache of `capacity` frames. Integers only."""

    def __init__(self, rule: ContextRule, num_frames: int) -> None:
        """Slots for a video of `num_frames` latent frames, or for any length if the window is shorter."""
        self.rule = rule
        self.capacity = num_frames if rule.window_frames is None else min(num_frames, rule.window_frames)
        self.start = 0  # first frame of the current chunk
        self.end = 0  # frame after it
        self._ring_start = rule.sink_frames  # first frame that went into the ring

    @property
    def num_held(self) -> int:
        """Frames in the cache, the current chunk included; they fill the first slots."""
        return len(self.held())

    @property
    def num_missing(self) -> int:
        """Frames between the sink and the oldest other frame that are not held."""
        return self._oldest() - self.rule.sink_frames if self.end > self.rule.sink_frames else 0

    def held(self) -> list[int]:
        """The frames in the cache, oldest first."""
        sink = list(range(min(self.rule.sink_frames, self.end)))
        return sink + list(range(self._oldest(), self.end))

    def begin(self, num_frames: int) -> None:
        """Start the next chunk: its frames take free slots or those of the oldest frames.

        Raises ConfigError if the chunk is longer than the rule's or the cache is too short for it.
        """
        if not 0 < num_frames <= self.rule.chunk_frames:
            raise ConfigError(f"a chunk of {num_frames} frames is not within 1..{self.rule.chunk_frames}")
        end = self.end + num_frames
        if self.rule.sink_frames + end - self._ring_start > self.capacity != self.rule.window_frames:
            raise ConfigError(
                f"frame {end} exceeds a KV cache made for {self.capacity} frames; make it longer"
            )
        self.start, self.end = self.end, end

    def cut(self, next_frame: int) -> None:
        """Keep the sink only; the next chunk starts at `next_frame`, behind a sink that is complete."""
        sink = self.rule.sink_frames
        assert min(self.end, next_frame) >= sink, f"a sink of {sink} frames is not complete at {self.end}"
        self.start = self.end = self._ring_start = next_frame

    def reset(self) -> None:
        """Forget every frame; the next chunk is the first."""
        self.start = self.end = 0
        self._ring_start = self.rule.sink_frames

    def follow(self, other: FrameSlots) -> None:
        """Hold the same frames in the same slots as `other`, a cache of the same capacity and rule."""
        assert (self.rule, self.capacity) == (other.rule, other.capacity), "caches of different shape"
        self.start, self.end, self._ring_start = other.start, other.end, other._ring_start

    def slot(self, frame: int) -> int:
        """Slot of a frame that is held."""
        sink = self.rule.sink_frames
        return frame if frame < sink else sink + (frame - self._ring_start) % (self.capacity - sink)

    def writes(self) -> list[tuple[int, int, int]]:
        """Runs (frame within the chunk, slot, number of frames) of the chunk: one, or two at a wrap."""
        return self.runs(self.start, self.end)

    def runs(self, first: int, last: int) -> list[tuple[int, int, int]]:
        """Runs (frame counted from `first`, slot, number of frames) of the frames `first..last`."""
        runs: list[tuple[int, int, int]] = []
        for frame in range(first, last):
            slot = self.slot(frame)
            if runs and runs[-1][1] + runs[-1][2] == slot:
                offset, start, count = runs.pop()
                runs.append((offset, start, count + 1))
            else:
                runs.append((frame - first, slot, 1))
        return runs

    def _oldest(self) -> int:
        """Oldest frame in the ring; `end` or more if there is none."""
        return max(self._ring_start, self.end - (self.capacity - self.rule.sink_frames))


class KVCache:
    """Rotated keys and values of every layer: two buffers [layers, B, capacity * S, H, D].

    Use: `begin(frames)` once per chunk, then any number of forwards, each of which overwrites the
    chunk's slots; `reset()` for the next video. Keys carry the rotation of their absolute frame
    index. With relative positions the sink keys are, once frames behind them are gone, rotated on so
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
        self._held: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())  # keys, values of each layer
        self._writes: list[_Write] = []

    @property
    def first_frame(self) -> int:
        """Absolute index of the current chunk's first frame."""
        return self.slots.start

    @property
    def chunk_frames(self) -> int:
        """Frames of the current chunk; 0 before the first `begin`."""
        return self.slots.end - self.slots.start

    @property
    def num_bytes(self) -> int:
        """Memory of both buffers."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def begin(self, num_frames: int) -> None:
        """Start the next chunk of `num_frames` latent frames, evicting what the window cannot hold."""
        self.slots.begin(num_frames)
        size = self.tokens
        held = self.slots.num_held * size
        self._held = self._keys[:, :, :held].unbind(), self._values[:, :, :held].unbind()
        self._writes = []
        for offset, slot, count in self.slots.writes():
            tokens = slice(slot * size, (slot + count) * size)
            targets = self._keys[:, :, tokens].unbind(), self._values[:, :, tokens].unbind()
            self._writes.append(_Write(slice(offset * size, (offset + count) * size), *targets))
        if self.slots.rule.rope == "relative" and self.slots.rule.sink_frames and self.slots.num_missing:
            self._shift_sink(self.slots.num_missing)

    def cut(self, next_frame: int) -> None:
        """Keep the sink only and go on at `next_frame`. Raises AssertionError before the sink is complete."""
        self.slots.cut(next_frame)

    def reset(self) -> None:
        """Forget every frame but keep the memory."""
        self.slots.reset()
        self._sink_keys = None

    def fork_from(self, prefix: KVCache) -> None:
        """Continue from what `prefix` holds, with all videos of this cache if it has but one.

        The prefix is left as it is, so any number of batches can fork from it. Cost: one copy of the
        frames held, for each video of this cache; none per forward.
        """
        assert prefix.batch in (1, self.batch), f"cannot fork {prefix.batch} videos into {self.batch}"
        self.slots.follow(prefix.slots)
        held = self.slots.num_held * self.tokens
        self._keys[:, :, :held] = prefix._keys[:, :, :held]
        self._values[:, :, :held] = prefix._values[:, :, :held]
        sink = prefix._sink_keys
        self._sink_keys = None if sink is None else sink.expand(-1, self.batch, -1, -1, -1).clone()

    def attention(self, layer: int, rotations: Tensor, kernel: Kernel) -> Attend:
        """Self-attention of one layer: store the chunk's keys and values, look at all that is held."""

        def run(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
            k_BLHD = rotate(k_BLHD, rotations)
            for write in self._writes:
                write.keys[layer].copy_(k_BLHD[:, write.chunk])
                write.values[layer].copy_(v_BLHD[:, write.chunk])
            return kernel(rotate(q_BLHD, rotations), self._held[0][layer], self._held[1][layer])

        return run

    def read(self, layer: int, first: int, last: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys, rotated by their frames' own indices, and values of the frames `first..last` that are held.

        Views, in order: one piece, or several where they do not lie side by side.
        """
        is_shifted_sink = self._sink_keys is not None and last <= self.slots.rule.sink_frames
        keys = self._sink_keys if is_shifted_sink else self._keys
        assert keys is not None
        parts = [
            slice(slot * self.tokens, (slot + count) * self.tokens)
            for _, slot, count in self.slots.runs(first, last)
        ]
        return [keys[layer, :, part] for part in parts], [self._values[layer, :, part] for part in parts]

    def _shift_sink(self, num_frames: int) -> None:
        sink = self._keys[:, :, : self.slots.rule.sink_frames * self.tokens]
        if self._sink_keys is None:
            self._sink_keys = sink.clone()
        layers_as_batch = self._sink_keys.flatten(0, 1)
        sink.copy_(rotate(layers_as_batch, time_shift(self._head_dim, num_frames, sink.device)).view_as(sink))


@dataclass
class SharedPast:
    """Keys and values of the frames before a window, where all samples of some forwards have the same ones.

    The first forward that it is given to leaves them here. They are of the policy and the text that it had.
    """

    cache: KVCache | None = None  # of one video


@dataclass(frozen=True)
class _Write:
    """Tokens of a chunk, and where each layer keeps their keys and values."""

    chunk: slice
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
