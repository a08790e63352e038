"""A learner's ranks on Ray, and what they are compared by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import ray
import torch

from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import TrainBatch, TrainSample
from astrolabe_ray.weights.pack import unpack
from learner.group import LearnerGroup
from learner.spec import LearnerSpec


def with_references(batch: TrainBatch) -> TrainBatch:
    def stored(sample: TrainSample) -> TrainSample:
        fields = vars(sample) | {"latents": ray.put(sample.latents)}
        return TrainSample(**fields)

    ranks = tuple(tuple(tuple(map(stored, micro)) for micro in rank) for rank in batch.ranks)
    return TrainBatch(batch.step, batch.seed, ranks, batch.num_samples)


def new_group(spec: LearnerSpec, placement_timeout_s: float = 30) -> LearnerGroup:
    folder = Path(spec.model.path)
    return LearnerGroup(spec, RayBlobStore(), placement_timeout_s=placement_timeout_s, shared=folder)


@asynccontextmanager
async def running(spec: LearnerSpec) -> AsyncIterator[LearnerGroup]:
    group = new_group(spec)
    try:
        await group.start()
        yield group
    finally:
        await group.stop()


async def weights(learner) -> dict[str, torch.Tensor]:
    policy = await learner.publish()
    buffer = ray.get(policy.buffer, timeout=30) if isinstance(policy.buffer, ray.ObjectRef) else policy.buffer
    return {name: t.clone() for name, t in unpack(policy.manifest, buffer).items()}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert list(a) == list(b)
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)
