"""The same seeds and data give the same adapters however they are spread over learner ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe_ray.batching import split
from astrolabe_ray.models.lora import adapter_tensors
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.types import PolicyVersion, TrainBatch, TrainSample
from learner.group import LearnerGroup
from learner.learner_worker import LearnerWorker
from learner.policies import with_policies
from learner.spec import LearnerSpec
from tests.learner_cases import SEED, changed, samples, spec_of
from tests.learner_ranks import difference, new_group, weights, with_references
from tests.plain_learner import PlainLearner

pytestmark = [pytest.mark.system, pytest.mark.slow]
NUM_SAMPLES, NUM_STEPS = 9, 2
LARGEST_DIFFERENCE = 2e-6
"""Of adapters after two updates of 1e-2; float32 gradients are added in another order."""


@pytest.fixture(scope="module")
def plain(model_root: Path) -> tuple[PlainLearner, list[dict[str, float]]]:
    """The float64 learner after its steps, and what each of them told."""
    spec = spec_of(model_root)
    base = load_transformer(resolve(str(model_root)), torch.float32, "cpu")
    policies = with_policies(base, spec.lora, None, seed=spec.seed, reference="start")
    learner = PlainLearner(spec, adapter_tensors(policies, "default"))
    return learner, [learner.train(samples(step, number=NUM_SAMPLES), SEED) for step in range(NUM_STEPS)]


class Ranks:
    """Processes, which take half a minute to start: they stay while cases want the same number of them."""

    group: LearnerGroup | None = None

    async def learner(self, spec: LearnerSpec) -> LearnerGroup:
        """Of `spec`, at its beginning."""
        group = self.group
        if group is not None and group._ranks and len(group._ranks) == spec.learner.num_ranks:
            await group._gather([rank.__ray_call__.remote(become, spec) for rank in group._ranks])
            return group
        await self.stop()
        self.group = group = new_group(spec)
        await group.start()
        return group

    async def stop(self) -> None:
        if self.group is not None:
            await self.group.stop()


@pytest.fixture(scope="module")
def ranks(ray_of_two_cpus: None) -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    asyncio.run(ranks.stop())


def become(worker: LearnerWorker, spec: LearnerSpec) -> None:
    """Another learner in the process of an earlier one."""
    worker.__init__(spec, rank=worker.rank, world_size=worker.world_size, blobs=worker._blobs)
    worker.setup()


def spread(s: list[TrainSample], num_ranks: int, micro_batch_size: int) -> tuple[Any, ...]:
    shares: list[list[Any]] = [[] for _ in range(num_ranks)]
    for number, micro in enumerate(split(s, micro_batch_size, num_ranks)):
        shares[number % num_ranks].append(micro)
    return tuple(map(tuple, shares))


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("num_ranks", "micro_batch_size", "settings"),
    [
        (1, 9, {}),
        (1, 2, {"gradient_checkpointing": True}),
        (2, 5, {"gradient_checkpointing": True, "keep_attention": True}),
        (2, 1, {"offload_optimizer": True}),
        (4, 3, {}),
        (4, 1, {"gradient_checkpointing": True, "offload_optimizer": True}),
    ],
    ids=str,
)
async def test_any_spread_gives_the_adapters_of_a_plain_learner(
    ranks: Ranks,
    model_root: Path,
    plain: tuple[PlainLearner, list[dict[str, float]]],
    num_ranks: int,
    micro_batch_size: int,
    settings: dict[str, bool],
    zero_stage: int,
) -> None:
    """Ranks, ZeRO, accumulation, checkpointing or offload that change what is learned."""
    offload = settings.get("offload_optimizer", False) and zero_stage > 0
    where = {"num_ranks": num_ranks, "num_cpus": 0.4, "zero_stage": zero_stage, "step_timeout_s": 120}
    spec = changed(spec_of(model_root), learner=where | settings | {"offload_optimizer": offload})
    group = await ranks.learner(spec)
    assert difference(await weights(group), plain[0].old[PolicyVersion()]) == 0
    for step, want in enumerate(plain[1]):
        s = samples(step, number=NUM_SAMPLES)
        batch = TrainBatch(step, SEED, spread(s, num_ranks, micro_batch_size), NUM_SAMPLES)
        result = await group.train(with_references(batch))
        for name, value in want.items():
            assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
    assert difference(await weights(group), plain[0].old[PolicyVersion(0, NUM_STEPS)]) <= LARGEST_DIFFERENCE
