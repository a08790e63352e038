"""What a learner rank reads of the rollouts it trains on: their latents, all before the first gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from astrolabe_ray.errors import PayloadsLost
from astrolabe_ray.roles import BlobStore
from astrolabe_ray.types import TrainSample
from learner.process_group import sum_over_ranks

Payloads = dict[str, tuple[object, ...]]
"""Rollout id -> its latents as they were sent, in one piece or behind those that its group shares, read
where they lie."""


def read_all(blobs: BlobStore, samples: Sequence[TrainSample]) -> Payloads:
    """Latents of this rank's `samples`. All ranks must call it together, even with none.

    Raises PayloadsLost on every rank when one of them misses some, since the others would wait for it in
    the next collective; each names its own.
    """
    found: Payloads = {}
    lost: dict[str, PayloadsLost] = {}
    pieces = {s.rollout_id: (s.latents,) if s.prefix is None else (s.prefix, s.latents) for s in samples}
    wanted = {id(blob): blob for blobs_of_one in pieces.values() for blob in blobs_of_one}
    read = dict(zip(wanted, blobs.get_all(list(wanted.values())), strict=True))
    for rollout_id, blobs_of_one in pieces.items():
        arrays = tuple(read[id(blob)] for blob in blobs_of_one)
        failures = [array for array in arrays if isinstance(array, PayloadsLost)]
        if failures:
            lost[rollout_id] = failures[0]
        else:
            found[rollout_id] = arrays
    (num_lost,) = sum_over_ranks([float(len(lost))])
    if num_lost:
        first = "; ".join(str(failure) for failure in list(lost.values())[:1])
        raise PayloadsLost(f"latents of {num_lost:.0f} rollouts are lost. {first}".strip(), tuple(lost))
    return found


def video(pieces: Sequence[object]) -> Tensor:
    """float32 latents [T, C, H, W] up to the window's end of what `read_all` found of a rollout."""
    return torch.cat([latents(piece) for piece in pieces])


def latents(array: object) -> Tensor:
    """float32 tensor of a latents payload: float32, or bfloat16 bits as uint16. Raises TypeError."""
    if isinstance(array, np.ndarray) and array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    if isinstance(array, np.ndarray) and array.dtype == np.float32:
        return torch.from_numpy(array.copy())
    raise TypeError(f"latents must be a float32 or uint16 array, got {getattr(array, 'dtype', type(array))}")
