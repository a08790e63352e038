"""A video in the making without a cache: every clean frame is kept and recomputed in every call.

The oracle of `actors.generation`: what is in view is an explicit list of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.transformer import CausalWanModel
from tests.plain_wan import View, plain_flow


@dataclass(frozen=True)
class Row:
    """A clean frame as the model saw it once: with which text, and which rows were in view."""

    latents_BCHW: Tensor
    text_BLD: Tensor
    view: View


class PlainVideo:
    """Noise comes from one generator per seed: first that of all `shape[0]` frames, then as needed."""

    def __init__(
        self,
        model: CausalWanModel,
        rule: ContextRule,
        timesteps: Sequence[float],
        context_timestep: float,
        text_BLD: Tensor,
        seeds: Sequence[int],
        shape: tuple[int, int, int, int],
    ) -> None:
        self.model, self.rule, self.timesteps, self.context = model, rule, timesteps, context_timestep
        self.text, self.shape = text_BLD, shape
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.noise = torch.stack([torch.randn(shape, generator=g) for g in self.generators]).double()
        self.rows: list[Row] = []
        self.held: list[tuple[int, int]] = []  # (frame, row), oldest first
        self.next_frame = self.num_noised = 0

    def extend(self, num_frames: int) -> Tensor:
        x = self.noise[:, self.num_noised : self.num_noised + num_frames]
        frames = range(self.next_frame, self.next_frame + num_frames)
        self._evict(num_frames)
        views = self._views(frames)
        for index, timestep in enumerate(self.timesteps):
            x = x - timestep / 1000 * self._flow(x, timestep, views)
            if index + 1 < len(self.timesteps):
                sigma = self.timesteps[index + 1] / 1000
                size = (num_frames, *self.shape[1:])
                eps = torch.stack([torch.randn(size, generator=g) for g in self.generators])
                x = (1 - sigma) * x + sigma * eps.double()
        self._append(frames, x, views)
        self.next_frame += num_frames
        self.num_noised += num_frames
        return x

    def follow(self, latents_BTCHW: Tensor) -> None:
        for chunk in latents_BTCHW.double().split(self.rule.chunk_frames, dim=1):
            frames = range(self.next_frame, self.next_frame + chunk.shape[1])
            self._evict(chunk.shape[1])
            self._append(frames, chunk, self._views(frames))
            self.next_frame += chunk.shape[1]
            self.num_noised += chunk.shape[1]

    def switch(self, text_BLD: Tensor, *, renew_sink: bool = False) -> None:
        """Show what is in view once more with the new text; the sink only if asked."""
        self.text = text_BLD
        sink = 0 if renew_sink else self.rule.sink_frames
        old, self.held = self.held, self.held[:sink]
        again = old[sink:]
        while again:
            end = self._piece_end(again[0][0])
            piece = [(frame, row) for frame, row in again if frame < end]
            again = again[len(piece) :]
            frames = [frame for frame, _ in piece]
            latents = torch.stack([self.rows[row].latents_BCHW for _, row in piece], dim=1)
            self._append(frames, latents, self._views(frames))

    def cut(self, text_BLD: Tensor) -> None:
        self.text, self.held, self.next_frame = text_BLD, [], 0

    def _piece_end(self, frame: int) -> int:
        """End of the frame's chunk, or of the sink if that comes first."""
        end = frame // self.rule.chunk_frames * self.rule.chunk_frames + self.rule.chunk_frames
        return min(end, self.rule.sink_frames) if frame < self.rule.sink_frames else end

    def _evict(self, num_frames: int) -> None:
        while self.rule.window_frames is not None and len(self.held) + num_frames > self.rule.window_frames:
            del self.held[self.rule.sink_frames]

    def _views(self, frames: Sequence[int]) -> list[View]:
        """Views of new frames that will lie behind all rows: they see what is held, and each other."""
        listed = [*self.held, *((frame, len(self.rows) + i) for i, frame in enumerate(frames))]
        relative = self.rule.rope == "relative"
        positions = tuple(range(len(listed))) if relative else tuple(frame for frame, _ in listed)
        rows = tuple(row for _, row in listed)
        return [View(position, rows, positions) for position in positions[len(self.held) :]]

    def _append(self, frames: Sequence[int], x_BTCHW: Tensor, views: Sequence[View]) -> None:
        for frame, latents, view in zip(frames, x_BTCHW.unbind(1), views, strict=True):
            self.held.append((frame, len(self.rows)))
            self.rows.append(Row(latents, self.text, view))

    def _flow(self, x_BTCHW: Tensor, timestep: float, views: Sequence[View]) -> Tensor:
        num_frames = x_BTCHW.shape[1]
        clean = [row.latents_BCHW[:, None] for row in self.rows]
        t_BT = torch.full((len(x_BTCHW), len(self.rows) + num_frames), self.context)
        t_BT[:, len(self.rows) :] = timestep
        texts = torch.stack([*(row.text_BLD for row in self.rows), *[self.text] * num_frames], dim=1)
        every_view = [*(row.view for row in self.rows), *views]
        flow = plain_flow(self.model, torch.cat([*clean, x_BTCHW], 1), t_BT, texts, every_view)
        return flow[:, -num_frames:]
