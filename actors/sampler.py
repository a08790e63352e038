"""Few-step sampling of videos, chunk by chunk, with a KV cache that lives as long as the sampler.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from astrolabe_ray.algorithms.flow_matching import NUM_TIMESTEPS, add_noise, flow_to_x0
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import KVCache
from astrolabe_ray.models.wan.transformer import CausalWanModel, TextKV


class Sampler:
    """Turns seeds and prompts into clean latents with a distilled causal model.

    Each chunk is denoised along `timesteps` (warped, falling, within (0, 1000]); between two of them
    the estimate of the clean chunk is noised again. A finished chunk passes the model once more at
    `context_timestep`, so that later chunks attend to clean frames; the last chunk needs no such pass.
    """

    def __init__(
        self, model: CausalWanModel, rule: ContextRule, timesteps: Sequence[float], context_timestep: float
    ) -> None:
        self._model = model
        self._rule = rule
        self._timesteps = tuple(timesteps)
        self._context_timestep = context_timestep
        self._cache: KVCache | None = None

    @torch.no_grad()
    def sample(
        self,
        text_kv: TextKV,
        seeds: Sequence[int],
        num_latent_frames: int,
        height_latent: int,
        width_latent: int,
    ) -> Iterator[Tensor]:
        """Yield clean chunks [B, t, C, H, W] in float32, one video per seed.

        `text_kv` holds one prompt per seed, or one prompt for all. A video depends on its own seed
        and prompt only, never on its batch. Noise is drawn on the CPU, so it is the same on every
        device. One call at a time: calls share the KV cache.
        """
        batch = len(seeds)
        text_kv = text_kv if text_kv.batch == batch else text_kv.expand(batch)
        noise = _Noise(seeds, self._model.head.modulation.device)
        frame = (self._model.architecture.in_channels, height_latent, width_latent)
        initial_BTCHW = noise.draw((num_latent_frames, *frame))
        cache = self._empty_cache(batch, num_latent_frames, height_latent, width_latent)
        for start, end in self._rule.chunks(num_latent_frames):
            cache.begin(end - start)
            x0_BTCHW = self._denoise(initial_BTCHW[:, start:end], text_kv, cache, noise)
            yield x0_BTCHW
            if end < num_latent_frames:
                self._flow(x0_BTCHW, self._context_timestep, text_kv, cache)

    def _denoise(self, x_BTCHW: Tensor, text_kv: TextKV, cache: KVCache, noise: _Noise) -> Tensor:
        sigmas = [timestep / NUM_TIMESTEPS for timestep in self._timesteps]
        for index, sigma in enumerate(sigmas):
            flow_BTCHW = self._flow(x_BTCHW, self._timesteps[index], text_kv, cache)
            x_BTCHW = flow_to_x0(x_BTCHW, flow_BTCHW, sigma)
            if index + 1 < len(sigmas):
                x_BTCHW = add_noise(x_BTCHW, noise.draw(x_BTCHW.shape[1:]), sigmas[index + 1])
        return x_BTCHW

    def _flow(self, x_BTCHW: Tensor, timestep: float, text_kv: TextKV, cache: KVCache) -> Tensor:
        t_BT = x_BTCHW.new_full(x_BTCHW.shape[:2], timestep)
        return self._model.chunk_forward(x_BTCHW, t_BT, text_kv, cache)

    def _empty_cache(self, batch: int, num_frames: int, height: int, width: int) -> KVCache:
        """The cache of the last call if it fits, else a new one."""
        grid = self._model.architecture.grid(height, width)
        wanted = (batch, num_frames, grid)
        if self._cache is None or (self._cache.batch, self._cache.num_frames, self._cache.grid) != wanted:
            self._cache = None  # free the old one first
            self._cache = KVCache(
                self._model.architecture,
                self._rule,
                batch=batch,
                num_frames=num_frames,
                grid=grid,
                dtype=self._model.dtype,
                device=self._model.head.modulation.device,
            )
        self._cache.reset()
        return self._cache


class _Noise:
    """Standard normal noise with a generator per video."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next values [B, *shape], float32."""
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators]).to(self._device)
