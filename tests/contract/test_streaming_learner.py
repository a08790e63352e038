"""Gradients that the learner adds up group by group against the update of the whole batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from astrolabe_ray.config.schema import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig
from astrolabe_ray.errors import PayloadsLost
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import (
    Blob,
    PolicyVersion,
    StepResult,
    Streamed,
    TrainBatch,
    TrainPart,
    TrainSample,
)
from astrolabe_ray.weights.pack import unpack
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from tests.plain_learner import PlainLearner
from tests.tiny_model import write_tiny_model

SEED, STD = 7, 2.5
NUM_GROUPS, GROUP_SIZE = 3, 3
TOLERANCE = 2e-6
"""Of adapters after updates of 1e-2: float32 gradients are added in another order."""
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def spec_of(model: Path, learner: dict | None = None, **algorithm: object) -> LearnerSpec:
    """Penalty, two timesteps, clipping of gradients, a behaviour policy that lags."""
    settings = {"kl_coef": 0.1, "timesteps_per_sample": 2, "old_policy_decay": "linear", "nft_beta": 0.5}
    where = {"lr": 1e-2, "adam_eps": 1e-3, "max_grad_norm": 5e-3, "accumulate": "streaming"}
    return LearnerSpec(
        model=ModelConfig(path=str(model), chunk_frames=1, window_frames=2, sink_frames=1),
        lora=LoraConfig(rank=2, alpha=4),
        algorithm=AlgorithmConfig.model_validate(settings | algorithm),
        learner=LearnerConfig.model_validate(where | (learner or {})),
        max_policy_age=0,
        seed=3,
    )


@asynccontextmanager
async def running(spec: LearnerSpec, blobs: LocalBlobStore | None = None) -> AsyncIterator[LocalLearner]:
    learner = LocalLearner(spec, blobs or LocalBlobStore())
    try:
        await learner.start()
        yield learner
    finally:
        await learner.stop()


def groups(step: int, *, life: int = 0) -> list[list[TrainSample]]:
    """Samples whose advantage is a centred reward; divided by STD none is above 5."""
    rng = np.random.default_rng(step)
    made = []
    for number in range(NUM_GROUPS):
        rewards = rng.normal(scale=4, size=GROUP_SIZE)
        made.append(
            [
                TrainSample(
                    rollout_id=f"train-{step}-{number}/{i}",
                    prompt=("a red circle", "a blue square", "a square")[number],
                    policy_version=PolicyVersion(life, step),
                    latents=rng.standard_normal((3, 4, 4, 4)).astype(np.float32),
                    advantage=float(reward - rewards.mean()),
                )
                for i, reward in enumerate(rewards)
            ]
        )
    return made


def group_id(group: Sequence[TrainSample]) -> str:
    return group[0].rollout_id.rpartition("/")[0]


def part(group: Sequence[TrainSample], step: int) -> TrainPart:
    return TrainPart(group_id(group), step, SEED, ((tuple(group[:2]), tuple(group[2:])),))


def scaled(group: Sequence[TrainSample], factor: float = 1 / STD) -> list[TrainSample]:
    return [dataclasses.replace(s, advantage=s.advantage * factor) for s in group]


def whole(made: Sequence[Sequence[TrainSample]], step: int, factor: float = 1 / STD) -> TrainBatch:
    """The batch as a controller makes it, and what it is said to follow from."""
    micro_batches = tuple(tuple(scaled(group, factor)) for group in made)
    ids = tuple(map(group_id, made))
    num_samples = sum(map(len, made))
    return TrainBatch(step, SEED, (micro_batches,), num_samples, Streamed(ids, factor))


def ordinary(batch: TrainBatch) -> TrainBatch:
    return dataclasses.replace(batch, streamed=None)


async def streamed_step(
    learner: LocalLearner, made: Sequence[Sequence[TrainSample]], step: int, factor: float = 1 / STD
) -> StepResult:
    """The groups arrive in another order than the batch has."""
    for number in np.random.default_rng(step + 1).permutation(len(made)):
        await learner.accumulate(part(made[number], step))
    return await learner.train(whole(made, step, factor))


async def published(learner: LocalLearner, adapter="old") -> Weights:
    policy = await learner.publish(adapter)
    return {name: t.clone() for name, t in unpack(policy.manifest, policy.buffer).items()}


def difference(got: Weights, want: Weights) -> float:
    assert list(got) == list(want)
    return max((got[name].double() - want[name].double()).abs().max().item() for name in want)


@pytest.mark.parametrize(
    ("space", "learner"),
    [
        ("x0", {"zero_stage": 0}),
        pytest.param("x0", {"zero_stage": 1, "gradient_checkpointing": True}, marks=pytest.mark.slow),
        ("x0", {"zero_stage": 2, "gradient_checkpointing": True}),
        ("v", {"zero_stage": 2}),
        pytest.param("v", {"zero_stage": 2, "offload_optimizer": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
async def test_streamed_steps_equal_a_plain_float64_learner(
    tiny_model: Path, space: str, learner: dict
) -> None:
    """Gradients that are lost, taken twice, reduced twice, or kept from the step before."""
    async with running(spec_of(tiny_model, learner, loss_space=space)) as streaming:
        plain = PlainLearner(streaming.worker.spec, await published(streaming))
        for step in range(2):
            made = groups(step)
            result = await streamed_step(streaming, made, step)
            want = plain.train([s for group in made for s in scaled(group)], SEED)
            assert result.version == PolicyVersion(0, step + 1)
            assert result.metrics["streaming/groups"] == NUM_GROUPS
            for name, value in want.items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert difference(await published(streaming), plain.old[result.version]) <= TOLERANCE
            assert difference(await published(streaming, "ema"), plain.ema) <= TOLERANCE


async def test_a_streamed_step_has_the_metrics_of_the_batch(tiny_model: Path) -> None:
    """Vitals that look at gradients before they were handed over."""
    spec = spec_of(tiny_model, {"gradient_checkpointing": True}, old_policy_decay="none", kl_coef=0.0)
    async with running(spec) as streaming, running(spec) as waiting:
        for step in range(2):
            made = groups(step)
            got = await streamed_step(streaming, made, step)
            want = await waiting.train(ordinary(whole(made, step)))
            assert got.metrics.keys() == want.metrics.keys()
            for name in want.metrics.keys() - {"streaming/groups"}:
                assert got.metrics[name] == pytest.approx(want.metrics[name], rel=1e-4, abs=1e-9), name
            assert (got.metrics["streaming/groups"], want.metrics["streaming/groups"]) == (NUM_GROUPS, 0)
        assert difference(await published(streaming), await published(waiting)) <= TOLERANCE


async def test_final_advantages_are_clipped_as_in_the_batch(tiny_model: Path) -> None:
    """With the std of each group its advantages are known at once, and one sum is enough."""
    spec = spec_of(tiny_model, advantage_std="group", adv_clip_max=1.0)
    async with running(spec) as streaming:
        plain = PlainLearner(spec, await published(streaming))
        for step in range(2):
            made = groups(step)
            assert any(abs(s.advantage) > 1 for group in made for s in group)
            result = await streamed_step(streaming, made, step, factor=1.0)
            want = plain.train([s for group in made for s in group], SEED)
            for name, value in want.items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert difference(await published(streaming), plain.old[result.version]) <= TOLERANCE


@pytest.mark.parametrize(
    "what",
    [
        "clipped",
        "one too few",
        *(pytest.param(what, marks=pytest.mark.slow) for what in ("one too many", "nothing accumulated")),
    ],
)
async def test_a_batch_that_is_not_what_was_accumulated_is_computed_bit_for_bit(
    tiny_model: Path, what: str
) -> None:
    """A clipped advantage; a group that was dropped, or came when the learner was already waited for.

    And nothing of it may be left for the next step, which is streamed again.
    """
    spec = spec_of(tiny_model)
    async with running(spec) as streaming, running(spec) as waiting:
        made = groups(0)
        arrived = {"one too few": made[:2], "nothing accumulated": []}.get(what, made)
        trained = made[:2] if what == "one too many" else made
        for group in arrived:
            await streaming.accumulate(part(group, 0))
        batch = whole(trained, 0)
        got = await streaming.train(ordinary(batch) if what == "clipped" else batch)
        want = await waiting.train(ordinary(batch))
        assert got.metrics == want.metrics and got.metrics["streaming/groups"] == 0
        assert difference(await published(streaming), await published(waiting)) == 0
        again = await streamed_step(streaming, groups(1), 1)
        await waiting.train(ordinary(whole(groups(1), 1)))
        assert again.metrics["streaming/groups"] == NUM_GROUPS
        assert difference(await published(streaming), await published(waiting)) <= TOLERANCE


@pytest.mark.parametrize("zero_stage", [0, 2])
async def test_a_broken_sample_in_a_streamed_step_changes_nothing(tiny_model: Path, zero_stage: int) -> None:
    """One NaN in Adam's moments would never leave them again; the next step must be free of it."""
    async with running(spec_of(tiny_model, {"zero_stage": zero_stage})) as learner:
        default = learner.worker._engine.read("default")
        made = groups(0)
        made[1][0].latents[0, 0, 0, 0] = np.nan
        result = await streamed_step(learner, made, 0)
        assert result.metrics["skipped_steps"] == 1 and math.isnan(result.metrics["grad_norm"])
        assert torch.equal(learner.worker._engine.read("default"), default)
        after = await streamed_step(learner, groups(1), 1)
        assert after.metrics["grad_norm"] > 0
        assert not torch.equal(learner.worker._engine.read("default"), default)


async def test_a_group_of_another_step_or_one_that_is_there_already_is_refused(tiny_model: Path) -> None:
    """It would count for the wrong step, or twice."""
    async with running(spec_of(tiny_model)) as learner:
        await learner.accumulate(part(groups(0)[0], 0))
        with pytest.raises(ValueError, match="train-0-0 was accumulated before"):
            await learner.accumulate(part(groups(0)[0], 0))
        with pytest.raises(ValueError, match="step 1 arrived at step 0"):
            await learner.accumulate(part(groups(1)[0], 1))


class Forgetful(LocalBlobStore):
    """Has lost the latents that are the number `lost`."""

    def get_all(self, blobs: Sequence[Blob]) -> list[object | PayloadsLost]:
        return [PayloadsLost("a node died") if isinstance(blob, int) else blob for blob in blobs]


async def test_a_group_whose_latents_are_lost_leaves_nothing_and_may_come_again(tiny_model: Path) -> None:
    """Half of a group in the sums, or a group that counts as there."""
    spec, made = spec_of(tiny_model), groups(0)
    torn = [*made[2][:2], dataclasses.replace(made[2][2], latents=13)]
    async with running(spec, Forgetful()) as streaming, running(spec) as waiting:
        with pytest.raises(PayloadsLost) as caught:
            await streaming.accumulate(part(torn, 0))
        assert caught.value.rollout_ids == ("train-0-2/2",)
        assert (await streamed_step(streaming, made, 0)).metrics["streaming/groups"] == NUM_GROUPS
        await waiting.train(ordinary(whole(made, 0)))
        assert difference(await published(streaming), await published(waiting)) <= TOLERANCE


async def test_a_loaded_checkpoint_knows_no_groups_of_the_life_before(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The same groups are made again with the same names, by another incarnation."""
    spec = spec_of(tiny_model)
    async with running(spec) as streaming, running(spec) as waiting:
        await streaming.accumulate(part(groups(0)[1], 0))
        await streaming.save(tmp_path / "checkpoint-0", {})
        await streaming.accumulate(part(groups(0)[0], 0))
        await streaming.load(tmp_path / "checkpoint-0")
        result = await streamed_step(streaming, groups(0, life=1), 0)
        await waiting.train(ordinary(whole(groups(0), 0)))
        assert result.metrics["streaming/groups"] == NUM_GROUPS
        assert difference(await published(streaming), await published(waiting)) <= TOLERANCE


@pytest.mark.parametrize(
    ("settings", "num_passes"), [({"old_policy_decay": "none", "kl_coef": 0.0}, 1), ({}, 2)], ids=str
)
async def test_on_policy_without_a_penalty_one_backward_pass_is_enough(
    tiny_model: Path, settings: dict, num_passes: int
) -> None:
    """Half of the time of a backward pass, for a gradient that is exactly zero."""
    seen: list[bool] = []
    async with running(spec_of(tiny_model, timesteps_per_sample=1, **settings)) as learner:
        await streamed_step(learner, groups(0), 0)  # the old policy is the new one in the first step
        engine = learner.worker._engine
        gradient = engine.gradient

        def watched(loss: torch.Tensor, *, keep_graph: bool = False) -> list[torch.Tensor]:
            seen.append(keep_graph)
            return gradient(loss, keep_graph=keep_graph)

        engine.gradient = watched
        await learner.accumulate(part(groups(1)[0], 1))
    assert len(seen) == 2 * num_passes, "of two microbatches"
