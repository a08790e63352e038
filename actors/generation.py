"""Videos in the making: one chunk after the other, with prompts that may change in between.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.noise import VideoNoise
from astrolabe_ray.algorithms.flow_matching import add_noise, flow_to_x0, sigma_of
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.kv_cache import KVCache
from astrolabe_ray.models.wan.transformer import CausalWanModel, TextKV, TimestepSteering


@dataclass(frozen=True)
class Steps:
    """The few denoising steps: their timesteps (warped, falling, within (0, 1000]) and what each does to
    the model; `context`: the same for the pass that lets later chunks see a finished one.
    """

    timesteps: tuple[float, ...]
    steering: tuple[TimestepSteering, ...]
    context: TimestepSteering

    @classmethod
    def of(cls, model: CausalWanModel, timesteps: Sequence[float], context_timestep: float) -> Steps:
        steering = tuple(model.at_timestep(timestep) for timestep in timesteps)
        return cls(tuple(timesteps), steering, model.at_timestep(context_timestep))


class Generation:
    """B videos that grow together. They share nothing but the KV cache's memory and their length.

    A chunk is passed through the model once more when it is finished, at the context timestep, so that
    later ones see it clean. That pass waits until there is a later one.
    """

    def __init__(
        self, model: CausalWanModel, steps: Steps, text_kv: TextKV, noise: VideoNoise, cache: KVCache
    ) -> None:
        """`text_kv`: a prompt for each of the cache's videos; `cache` must be empty."""
        self._model, self._steps, self._noise, self._cache = model, steps, noise, cache
        self._text = text_kv
        self._rule = cache.slots.rule
        self._frames: dict[int, Tensor] = {}  # clean latents [B, C, H, W] that the cache holds, by frame
        self._unseen: tuple[int, int] | None = None  # the newest chunk, while its clean pass is due

    @torch.no_grad()
    def extend(self, num_frames: int | None = None) -> Tensor:
        """The next chunk's clean latents [B, T, C, H, W] float32; T = `num_frames`, by default a chunk's."""
        num_frames = self._rule.chunk_frames if num_frames is None else num_frames
        self._show_newest()
        self._cache.begin(num_frames)
        x_BTCHW = self._noise.initial(num_frames)
        last = len(self._steps.timesteps) - 1
        for index, timestep in enumerate(self._steps.timesteps):
            flow_BTCHW = self._flow(x_BTCHW, self._steps.steering[index])
            x_BTCHW = flow_to_x0(x_BTCHW, flow_BTCHW, sigma_of(timestep))
            if index < last:
                sigma = sigma_of(self._steps.timesteps[index + 1])
                x_BTCHW = add_noise(x_BTCHW, self._noise.between_steps(num_frames), sigma)
        self._keep(x_BTCHW)
        return x_BTCHW

    @torch.no_grad()
    def follow(self, latents_BTCHW: Tensor) -> None:
        """Take given clean latents as the videos' next frames.

        Raises ConfigError if T is not a multiple of the chunk's frames.
        """
        step, num_frames = self._rule.chunk_frames, latents_BTCHW.shape[1]
        if num_frames % step:
            raise ConfigError(
                f"{num_frames} given latent frames are not a multiple of chunk_frames {step}; "
                f"give {num_frames // step * step or step}"
            )
        for chunk_BTCHW in latents_BTCHW.split(step, dim=1):
            self._show_newest()
            self._cache.begin(step)
            self._noise.initial(step)  # theirs, so that later frames get the noise of their own index
            self._keep(chunk_BTCHW)

    @torch.no_grad()
    def switch(self, text_kv: TextKV, *, renew_sink: bool = False) -> None:
        """Go on with another prompt: motion and picture continue, and the new prompt takes over.

        The frames in the cache carry the old prompt in their keys and values and would drag it along.
        They are passed through the model again with the new one, oldest first, chunk by chunk, each
        seeing those before it. The sink keeps what it has, as it anchors the video's look, unless
        `renew_sink`.
        """
        end, sink = self._cache.slots.end, self._rule.sink_frames
        first = max(sink, sink + self._cache.slots.num_missing)
        if self._unseen is not None and not renew_sink and self._unseen[0] < sink:
            self._show_newest()
        self._unseen = None
        self._text = text_kv
        if renew_sink:
            self._cache.reset()
            self._show(0, min(sink, end))
        if end > sink:
            self._cache.cut(first)
            self._show(first, end)

    def cut(self, text_kv: TextKV) -> None:
        """Start anew with another prompt: nothing made so far is seen again, positions begin at 0."""
        self._cache.reset()
        self._frames.clear()
        self._unseen = None
        self._text = text_kv

    @torch.no_grad()
    def fork(self, seeds: Sequence[int]) -> Generation:
        """A video for each of `seeds` that goes on from here with the same prompt; this one stays as it is.

        What is in view is copied into a cache of the new videos, not computed again. `seeds` are those
        of the noise from here on. One video forks into any number of them, several into as many.
        """
        self._show_newest()
        batch, held = len(seeds), self._cache
        cache = KVCache(
            self._model.architecture,
            self._rule,
            batch=batch,
            num_frames=held.slots.capacity,
            grid=held.grid,
            dtype=self._model.dtype,
            device=self._model.head.modulation.device,
        )
        cache.fork_from(held)
        text_kv = self._text if self._text.batch == batch else self._text.expand(batch)
        forked = Generation(self._model, self._steps, text_kv, self._noise.of(seeds), cache)
        forked._frames = {frame: x_BCHW.expand(batch, -1, -1, -1) for frame, x_BCHW in self._frames.items()}
        return forked

    def _show_newest(self) -> None:
        """The clean pass that is due, if any."""
        if self._unseen is not None:
            start, end = self._unseen
            self._flow(self._latents(start, end), self._steps.context)
            self._unseen = None

    def _show(self, start: int, end: int) -> None:
        """Clean passes of frames that are to be held again, in pieces that end where chunks end."""
        step = self._rule.chunk_frames
        while start < end:
            stop = min(start // step * step + step, end)
            self._cache.begin(stop - start)
            self._flow(self._latents(start, stop), self._steps.context)
            start = stop

    def _keep(self, chunk_BTCHW: Tensor) -> None:
        """Note the newest chunk, and forget latents that the cache no longer holds."""
        start, end = self._cache.slots.start, self._cache.slots.end
        self._frames.update(zip(range(start, end), chunk_BTCHW.unbind(1), strict=True))
        held = set(self._cache.slots.held())
        self._frames = {frame: latents for frame, latents in self._frames.items() if frame in held}
        self._unseen = start, end

    def _latents(self, start: int, end: int) -> Tensor:
        return torch.stack([self._frames[frame] for frame in range(start, end)], dim=1)

    def _flow(self, x_BTCHW: Tensor, steering: TimestepSteering) -> Tensor:
        return self._model.chunk_forward(x_BTCHW, steering, self._text, self._cache)
