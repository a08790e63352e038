"""Takes published policies into the weights that a rollout actor samples with."""

from __future__ import annotations

import math
import time

import numpy as np

from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.models.lora import MergedLinears
from astrolabe_ray.models.wan.transformer import CausalWanModel
from astrolabe_ray.types import WeightAck, WeightManifest
from astrolabe_ray.weights.pack import unpack


class WeightReceiver:
    """Proves what arrived, then merges it; between rollouts only.

    `held` is the policy that the model has now, or None: before the first one, and after a merge
    that broke off half-way. A buffer that fails its checks leaves the held policy as it was.
    """

    def __init__(
        self, model: CausalWanModel, *, lora_scale: float, name: str, base_on_host: bool = False
    ) -> None:
        """`lora_scale`: alpha / rank of this run; `name` signs the acknowledgements; `base_on_host`: keep
        the base of the merged layers in host memory.
        """
        self._merged = MergedLinears(model, lora_scale, base_on_host=base_on_host)
        self._lora_scale = lora_scale
        self._name = name
        self.held: WeightManifest | None = None

    def load(self, manifest: WeightManifest, buffer: np.ndarray) -> WeightAck:
        """Verify size, sha256 and tensors of `buffer` (uint8), then replace the weights.

        Raises WeightMismatch.
        """
        start = time.perf_counter()
        if not math.isclose(manifest.lora_scale, self._lora_scale):
            raise WeightMismatch(
                f"policy {manifest.version} has LoRA scale {manifest.lora_scale:g}, {self._name} merges with "
                f"{self._lora_scale:g}: learner and rollout actors must run with the same lora section."
            )
        tensors = unpack(manifest, buffer)
        before, self.held = self.held, None
        try:
            num_modules = self._merged.load(tensors)
        except WeightMismatch:  # found before anything was written
            self.held = before
            raise
        self.held = manifest
        seconds = time.perf_counter() - start
        return WeightAck(self._name, manifest.version, manifest.checksum, num_modules, seconds)
