"""The models that make a video, on their device or, to save its memory, visiting it one at a time.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from actors.loading import LoadedModels, load_models
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora import merge_for_good
from astrolabe_ray.models.lora_files import read_lora, require_lora_fits
from astrolabe_ray.models.wan.transformer import CausalWanModel, TextKV
from astrolabe_ray.video_tasks import VideoModelSpec


class Movable(Protocol):
    """A model that can change its device."""

    def to(self, device: torch.device) -> None: ...


class Visits:
    """Lets models onto `device` for as long as they are used; without `low_memory` they live there."""

    def __init__(self, device: torch.device, *, low_memory: bool) -> None:
        self.device, self.low_memory = device, low_memory

    @property
    def home(self) -> torch.device:
        """Where a model is between two visits."""
        return torch.device("cpu") if self.low_memory else self.device

    @contextmanager
    def of(self, model: Movable) -> Iterator[None]:
        """`model` is on the device inside of this block."""
        if not self.low_memory:
            yield
            return
        model.to(self.device)
        try:
            yield
        finally:
            model.to(self.home)


@dataclass(frozen=True)
class VideoModels(LoadedModels):
    """Everything that turns prompts into videos, loaded."""

    spec: VideoModelSpec
    visits: Visits

    @classmethod
    def load(cls, spec: VideoModelSpec) -> VideoModels:
        """Raises ConfigError for files that are absent or do not fit, and where there is no GPU to use."""
        if spec.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device here; use --gpus-per-worker 0 to work on the CPU")
        device = torch.device(spec.device)
        visits = Visits(device, low_memory=spec.low_memory)
        loaded = load_models(spec.model, device, visits.home)
        if spec.lora is not None:
            merge_lora(loaded.transformer, spec.lora)
        return cls(**vars(loaded), spec=spec, visits=visits)

    def encode(self, prompts: Sequence[str]) -> TextKV:
        """Cross-attention keys and values of `prompts`."""
        with self.visits.of(self.text_encoder):
            text_BLD = self.text_encoder.encode(prompts)
        return self.transformer.encode_text(text_BLD.to(self.visits.device))


def merge_lora(model: CausalWanModel, path: str) -> None:
    """Fold the LoRA at `path` into the weights. Raises ConfigError if it was made for another model."""
    lora = read_lora(Path(path))
    require_lora_fits(lora, model, Path(path))
    merge_for_good(model, lora.tensors, lora.scale)
