"""What one flat buffer of weights contains, and the checks that a receiver makes before it uses it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.types import PolicyVersion, TensorEntry, WeightManifest

ALIGNMENT_BYTES = 16
"""Every tensor starts at a multiple of this, so that views of any dtype are aligned."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def lay_out(tensors: Mapping[str, Tensor]) -> tuple[tuple[TensorEntry, ...], int]:
    """Places of `tensors`, in their order, and the size of the buffer in bytes.

    Raises ValueError for no tensors at all and for a dtype other than float32 and bfloat16.
    """
    if not tensors:
        raise ValueError("no tensors to publish: the model has no adapter")
    entries, offset = [], 0
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name} is {dtype}; weights travel as {' or '.join(ITEM_BYTES)}")
        num_bytes = tensor.numel() * ITEM_BYTES[dtype]
        entries.append(TensorEntry(name, tuple(tensor.shape), dtype, offset, num_bytes))
        offset += -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return tuple(entries), offset


def checksum(buffer: np.ndarray) -> str:
    """sha256 of a contiguous uint8 array, hex."""
    return hashlib.sha256(buffer.data).hexdigest()


def verify(manifest: WeightManifest, buffer: np.ndarray) -> None:
    """Check that `buffer` is what `manifest` describes.

    Raises WeightMismatch for a wrong type, size or checksum and for tensors that do not fit.
    """
    where = f"weights of policy {manifest.version}"
    if buffer.dtype != np.uint8 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
        raise WeightMismatch(f"{where}: expected a flat uint8 array, got {buffer.dtype} {buffer.shape}.")
    if buffer.nbytes != manifest.num_bytes:
        raise WeightMismatch(f"{where}: {buffer.nbytes} bytes arrived, {manifest.num_bytes} were published.")
    if not manifest.tensors:
        raise WeightMismatch(f"{where}: the manifest lists no tensors.")
    end = 0
    for entry in manifest.tensors:
        expected = math.prod(entry.shape) * ITEM_BYTES.get(entry.dtype, 0)
        fits = end <= entry.offset and entry.offset + entry.num_bytes <= buffer.nbytes
        if entry.num_bytes != expected or entry.offset % ALIGNMENT_BYTES or not fits:
            raise WeightMismatch(f"{where}: {entry} does not fit a buffer of {buffer.nbytes} bytes.")
        end = entry.offset + entry.num_bytes
    actual = checksum(buffer)
    if actual != manifest.checksum:
        raise WeightMismatch(
            f"{where}: sha256 {actual[:12]} arrived, {manifest.checksum[:12]} was published; "
            "the payload was damaged on the way."
        )


def require_same_tensors(manifest: WeightManifest, own: Mapping[str, Tensor]) -> None:
    """Check that the receiver has exactly the published tensors. Raises WeightMismatch naming one."""
    published = {entry.name: entry.shape for entry in manifest.tensors}
    for name in published.keys() ^ own.keys():
        side = "published but unknown here" if name in published else "expected here but not published"
        raise WeightMismatch(
            f"policy {manifest.version} has {len(published)} tensors, {len(own)} are expected; "
            f"{name} is {side}."
        )
    for name, shape in published.items():
        if shape != tuple(own[name].shape):
            raise WeightMismatch(f"{name} was published as {shape}, here it is {tuple(own[name].shape)}.")


def make_manifest(
    entries: tuple[TensorEntry, ...],
    buffer: np.ndarray,
    *,
    version: PolicyVersion,
    lora_scale: float,
) -> WeightManifest:
    """Seal `buffer` with its checksum."""
    return WeightManifest(version, entries, buffer.nbytes, checksum(buffer), lora_scale)
