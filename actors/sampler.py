"""Few-step sampling of videos, chunk by chunk, with a KV cache that lives as long as the sampler.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from actors.generation import Generation, Steps
from actors.noise import VideoNoise
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import FrameSlots, KVCache
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

    def sample(
        self,
        text_kv: TextKV,
        seeds: Sequence[int],
        num_latent_frames: int,
        height_latent: int,
        width_latent: int,
    ) -> Iterator[Tensor]:
        """Yield clean chunks [B, t, C, H, W] in float32, one video per seed.

        `text_kv` holds one prompt per seed, or one prompt for all. A video depends on its own seed,
        prompt and length only, never on its batch. One call at a time: calls share the KV cache.
        """
        generation = self.begin(text_kv, seeds, num_latent_frames, height_latent, width_latent)
        for start, end in self._rule.chunks(num_latent_frames):
            yield generation.extend(end - start)

    def begin(
        self,
        text_kv: TextKV,
        seeds: Sequence[int],
        num_latent_frames: int,
        height_latent: int,
        width_latent: int,
    ) -> Generation:
        """Empty videos of up to `num_latent_frames`, to be driven by hand. The last ones end here."""
        batch = len(seeds)
        frame = (self._model.architecture.in_channels, height_latent, width_latent)
        return Generation(
            self._model,
            Steps.of(self._model, self._timesteps, self._context_timestep),
            text_kv if text_kv.batch == batch else text_kv.expand(batch),
            VideoNoise(seeds, num_latent_frames, frame, self._model.head.modulation.device),
            self._empty_cache(batch, num_latent_frames, height_latent, width_latent),
        )

    def _empty_cache(self, batch: int, num_frames: int, height: int, width: int) -> KVCache:
        """The cache of the last call if it fits, else a new one."""
        grid = self._model.architecture.grid(height, width)
        wanted = (batch, FrameSlots(self._rule, num_frames).capacity, grid)
        held = self._cache and (self._cache.batch, self._cache.slots.capacity, self._cache.grid)
        if held != wanted:
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
        assert self._cache is not None
        self._cache.reset()
        return self._cache
