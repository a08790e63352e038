"""Ordered tensors <-> one flat uint8 buffer: one put, one get, zero-copy views at the receiver."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from astrolabe_ray.types import PolicyVersion, TensorEntry, WeightManifest
from astrolabe_ray.weights.manifest import lay_out, make_manifest, verify


def pack(
    tensors: Mapping[str, Tensor], *, version: PolicyVersion, lora_scale: float
) -> tuple[WeightManifest, np.ndarray]:
    """Copy `tensors` (any device, float32 or bfloat16) into one uint8 buffer and describe it.

    Raises ValueError for no tensors and for other dtypes.
    """
    entries, num_bytes = lay_out(tensors)
    buffer = np.zeros(num_bytes, np.uint8)  # zeros, so that padding never changes the checksum
    for entry, tensor in zip(entries, tensors.values(), strict=True):
        _view(buffer, entry).copy_(tensor.detach())
    return make_manifest(entries, buffer, version=version, lora_scale=lora_scale), buffer


def unpack(manifest: WeightManifest, buffer: np.ndarray) -> dict[str, Tensor]:
    """Verified views into `buffer`, in the published order. They must not be written to.

    Raises WeightMismatch when the buffer is not the published one.
    """
    verify(manifest, buffer)
    return {entry.name: _view(buffer, entry) for entry in manifest.tensors}


def _view(buffer: np.ndarray, entry: TensorEntry) -> Tensor:
    piece = buffer[entry.offset : entry.offset + entry.num_bytes]
    with warnings.catch_warnings():  # arrays out of the object store are read-only, and so are our views
        warnings.filterwarnings("ignore", message=".*not writable.*", category=UserWarning)
        flat = torch.from_numpy(piece)
    return flat.view(getattr(torch, entry.dtype)).view(entry.shape)
