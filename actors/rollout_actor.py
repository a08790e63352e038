"""Generates videos with one policy at a time. A plain class: the pool makes Ray actors of it.

Legend: B rollouts of one request, T latent frames, F frames, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.decoder import VideoDecoder
from actors.loading import load_models
from actors.shared_prefix import Sampled, sample_clips
from actors.weight_receiver import WeightReceiver
from astrolabe_ray.config.schema import LoraConfig, ModelConfig, RunConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure
from astrolabe_ray.models.files import anywhere, files_of
from astrolabe_ray.models.prompt_cache import prompt_encoder
from astrolabe_ray.types import Blob, PolicyVersion, Rollout, RolloutRequest, WeightAck, WeightManifest
from astrolabe_ray.weights.probe import probe_output

CACHED_PROMPTS = 64
"""Text embeddings kept (4 MB each at full size); a prompt comes back for each batch of its group."""
PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class RolloutActorSpec:
    """What an actor needs of the config."""

    model: ModelConfig
    lora: LoraConfig
    device: str  # "cpu" or "cuda"
    num_threads: int | None  # of torch; None: leave this process as it is
    base_on_host: bool = False
    text_encoder_on_host: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> RolloutActorSpec:
        """For a process of its own with the resources of `config.rollout`."""
        device = "cuda" if config.rollout.num_gpus > 0 else "cpu"
        rollout, threads = config.rollout, max(1, int(config.rollout.num_cpus))
        on_host = (rollout.base_on_host, rollout.text_encoder_on_host)
        return cls(anywhere(config.model), config.lora, device, threads, *on_host)


class RolloutActor:
    """Owns transformer, KV cache, VAE and text encoder, and the version of the weights.

    A new policy is taken only between requests, so every frame of a rollout has the same policy.
    One call at a time. Decoding follows each chunk in the same thread.
    """

    def __init__(self, spec: RolloutActorSpec, name: str) -> None:
        self.spec, self.name = spec, name

    def __repr__(self) -> str:
        return self.name

    def setup(self) -> None:
        """Load the models. Raises ConfigError when files are absent or do not fit."""
        if self.spec.num_threads is not None:
            torch.set_num_threads(self.spec.num_threads)
        device, on_host = torch.device(self.spec.device), self.spec.text_encoder_on_host
        loaded = load_models(self.spec.model, device, text_encoder_on_host=on_host)
        self._model, self._vae, self._sampler = loaded.transformer, loaded.vae, loaded.sampler
        self._sampling = loaded.description
        self._encode = lru_cache(CACHED_PROMPTS)(
            prompt_encoder(loaded.text_encoder, files_of(self.spec.model), self.spec.model.prompt_cache)
        )
        scale = self.spec.lora.alpha / self.spec.lora.rank
        self._weights = WeightReceiver(
            self._model, lora_scale=scale, name=self.name, base_on_host=self.spec.base_on_host
        )

    def load_policy(self, manifest: WeightManifest, buffer: np.ndarray) -> WeightAck:
        """Take a published policy. Raises WeightMismatch; the policy held before then stays."""
        return replace(self._weights.load(manifest, buffer), sampling=self._sampling)

    def probe(self, seed: int) -> list[float]:
        """Output of the held policy on a fixed input. Raises InfraFailure before it holds one."""
        self._held_version()
        return probe_output(self._model, self._model.architecture, seed)

    def generate(self, request: RolloutRequest) -> tuple[Any, ...]:
        """Sample every rollout of `request` up to its window's end and decode the window.

        Returns 1 + request.num_payloads values, each of which can travel on its own: the records without
        payloads (list[Rollout]), the latents of the prefix if it is shared, then for each rollout its views
        (uint8 [F, 3, H, W]) and its latents.
        Raises InfraFailure before a policy is held, DataFailure when latents are not finite and
        ConfigError when the GPU's memory is too small.
        """
        start = time.perf_counter()
        version = self._held_version()
        try:
            made = self._sample(request)
        except torch.OutOfMemoryError as reason:
            raise ConfigError(
                f"{self.name} ran out of GPU memory with rollout.batch_size {len(request.seeds)}: {reason}. "
                "Lower rollout.batch_size or set rollout.base_on_host and rollout.text_encoder_on_host."
            ) from None
        self._require_finite(made, request, version)
        seconds = time.perf_counter() - start
        record = Rollout(
            group_id=request.group_id,
            index=0,
            prompt=request.prompt,
            seed=0,
            policy_version=version,
            actor=self.name,
            latents=None,
            views=(),
            window_start=self._window(request)[0],
            generate_s=(seconds - made.decode_s) / len(request.seeds),
            decode_s=made.decode_s / len(request.seeds),
        )
        pairs = zip(request.indices, request.seeds, strict=True)
        payloads: list[np.ndarray] = []
        if made.prefix_1TCHW is not None:
            payloads.append(latents_payload(made.prefix_1TCHW[0], self.spec.model.dtype))
        for video, latents_TCHW in zip(made.videos, made.latents_BTCHW, strict=True):
            payloads += [derive_view(video, view) for view in request.views]
            payloads.append(latents_payload(latents_TCHW, self.spec.model.dtype))
        return [replace(record, index=index, seed=seed) for index, seed in pairs], *payloads

    def _sample(self, request: RolloutRequest) -> Sampled:
        m, batch = self.spec.model, len(request.seeds)
        text_kv = self._model.encode_text(self._encode(request.prompt)[None])  # adapters reach it: anew
        if request.prefix_seed is not None:
            return sample_clips(self._sampler, self._vae, text_kv, request, height=m.height, width=m.width)
        start, end = self._window(request)
        decoder = VideoDecoder(
            self._vae,
            batch=batch,
            num_latent_frames=end,
            height=m.height,
            width=m.width,
            first_latent_frame=start,
        )
        chunks = []
        for chunk_BTCHW in self._sampler.sample(
            text_kv,
            request.seeds,
            end,
            m.height // PIXELS_PER_LATENT,
            m.width // PIXELS_PER_LATENT,
        ):
            chunks.append(chunk_BTCHW.cpu())  # waits for the GPU, so that the decoder times itself only
            decoder.add(chunk_BTCHW)
        return Sampled(torch.cat(chunks, dim=1), decoder.videos(), decoder.seconds)

    def _window(self, request: RolloutRequest) -> tuple[int, int]:
        return request.window or (0, self.spec.model.num_latent_frames)

    def _held_version(self) -> PolicyVersion:
        if self._weights.held is None:
            raise InfraFailure(f"{self.name} holds no policy yet; it must load one before it serves.")
        return self._weights.held.version

    def _require_finite(self, made: Sampled, request: RolloutRequest, version: PolicyVersion) -> None:
        if not made.is_finite:
            raise DataFailure(
                f"policy {version} gave latents that are not finite for '{request.prompt}' "
                f"(seeds {request.seeds}); it may have diverged: lower learner.lr."
            )


def latents_payload(latents: Tensor, dtype: str) -> np.ndarray:
    """Latents as they travel: float32, or the bits of bfloat16 as uint16 when that is the model's dtype."""
    if dtype == "bfloat16":
        return latents.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    return latents.float().contiguous().numpy()


def with_payloads(records: Sequence[Rollout], blobs: Sequence[Blob], num_views: int) -> list[Rollout]:
    """Join what `RolloutActor.generate` returns: records, and their blobs (arrays or references).

    One blob more than the rollouts' own is that of the prefix which they share.
    """
    each, own = num_views + 1, (num_views + 1) * len(records)
    assert len(blobs) in (own, own + 1), f"{len(blobs)} blobs for {len(records)} rollouts"
    prefix, blobs = (blobs[0], blobs[1:]) if len(blobs) > own else (None, blobs)
    parts = [tuple(blobs[i : i + each]) for i in range(0, own, each)]
    return [
        replace(record, views=part[:-1], latents=part[-1], prefix=prefix)
        for record, part in zip(records, parts, strict=True)
    ]
