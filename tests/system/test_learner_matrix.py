"""The same seeds and data give the same adapters however they are spread over learner ranks."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch

from astrolabe_ray.batching import split
from astrolabe_ray.types import TrainBatch, TrainSample
from learner.learner_worker import LearnerSpec
from tests.contract.test_learner import changed, spec_of
from tests.plain_learner import PlainLearner
from tests.system.test_learner_group import SEED, difference, running, samples, weights, with_references
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.system, pytest.mark.slow]
NUM_SAMPLES = 9
LARGEST_DIFFERENCE = 2e-6
"""Of adapters after two updates of 1e-2; float32 gradients are added in another order."""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> LearnerSpec:
    return spec_of(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


def spread(s: list[TrainSample], num_ranks: int, micro_batch_size: int) -> tuple[Any, ...]:
    ranks: list[list[Any]] = [[] for _ in range(num_ranks)]
    for number, micro in enumerate(split(s, micro_batch_size, num_ranks)):
        ranks[number % num_ranks].append(micro)
    return tuple(map(tuple, ranks))


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
    spec: LearnerSpec, num_ranks: int, micro_batch_size: int, settings: dict[str, bool], zero_stage: int
) -> None:
    """Ranks, ZeRO, accumulation, checkpointing or offload that change what is learned."""
    offload = settings.get("offload_optimizer", False) and zero_stage > 0
    where = {"num_ranks": num_ranks, "num_cpus": 0.4, "zero_stage": zero_stage, "step_timeout_s": 120}
    spec = changed(spec, learner=where | settings | {"offload_optimizer": offload})
    async with running(spec) as group:
        plain = PlainLearner(spec, await weights(group))
        for step in range(2):
            s = samples(step, NUM_SAMPLES, stale=0)
            batch = TrainBatch(step, SEED, spread(s, num_ranks, micro_batch_size), NUM_SAMPLES)
            result = await group.train(with_references(batch))
            for name, value in plain.train(s, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
        assert difference(await weights(group), plain.old[result.version]) <= LARGEST_DIFFERENCE
