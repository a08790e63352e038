"""Gradients that are added up group by group on several ranks, against a plain float64 learner."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from astrolabe_ray.batching import split
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import PolicyVersion, TrainBatch, TrainPart, TrainSample
from astrolabe_ray.weights.pack import unpack
from learner.group import LearnerGroup
from tests.contract.test_streaming_learner import (
    NUM_GROUPS,
    SEED,
    TOLERANCE,
    difference,
    group_id,
    groups,
    ordinary,
    scaled,
    spec_of,
    whole,
)
from tests.plain_learner import PlainLearner
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.slow]
Ranks = tuple[tuple[tuple[TrainSample, ...], ...], ...]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def spread(samples: Sequence[TrainSample], micro_batch_size: int) -> Ranks:
    """Over two ranks, with latents in the object store; a rank may get a copy of weight 0."""
    ranks: list[list[tuple[TrainSample, ...]]] = [[], []]
    for number, micro in enumerate(split(samples, micro_batch_size, 2)):
        stored = (dataclasses.replace(s, latents=ray.put(s.latents)) for s in micro)
        ranks[number % 2].append(tuple(stored))
    return tuple(map(tuple, ranks))


def batch_of(made: Sequence[Sequence[TrainSample]], step: int) -> TrainBatch:
    everything = [s for group in made for s in scaled(group)]
    return dataclasses.replace(whole(made, step), ranks=spread(everything, 5))


async def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
    policy = await group.publish()
    return {
        name: t.clone() for name, t in unpack(policy.manifest, ray.get(policy.buffer, timeout=30)).items()
    }


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
async def test_two_ranks_that_stream_equal_a_plain_learner(
    tmp_path_factory: pytest.TempPathFactory, zero_stage: int
) -> None:
    """A rank that hands over its sums before the mean over ranks, or waits for one that has none.

    Groups come in another order than in the batch, and are spread over the ranks in another way. The third
    step falls back to the batch, and the fourth is streamed again.
    """
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    where = {"num_ranks": 2, "zero_stage": zero_stage, "step_timeout_s": 120, "gradient_checkpointing": True}
    spec = spec_of(model, where)
    group = LearnerGroup(spec, RayBlobStore(), placement_timeout_s=30, shared=Path(model))
    try:
        await group.start()
        plain = PlainLearner(spec, await weights(group))
        for step in range(4):
            made = groups(step)
            for number in np.random.default_rng(step + 1).permutation(NUM_GROUPS):
                ranks = spread(made[number], 2)
                await group.accumulate(TrainPart(group_id(made[number]), step, SEED, ranks))
            batch = batch_of(made, step)
            result = await group.train(ordinary(batch) if step == 2 else batch)
            assert result.version == PolicyVersion(0, step + 1)
            assert result.metrics["streaming/groups"] == (0 if step == 2 else NUM_GROUPS)
            for name, value in plain.train([s for g in made for s in scaled(g)], SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert difference(await weights(group), plain.old[result.version]) <= TOLERANCE
    finally:
        await group.stop()
