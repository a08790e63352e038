"""The learner's ranks as real Ray actors, against one rank and against a plain float64 learner."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util import placement_group_table

from astrolabe_ray.errors import ConfigError, InfraFailure, PayloadsLost, WeightMismatch
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import PolicyVersion, TrainBatch, TrainSample
from astrolabe_ray.weights.pack import unpack
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from tests.learner_cases import SEED, changed, samples
from tests.learner_ranks import difference, new_group, running, weights, with_references
from tests.plain_learner import PlainLearner

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_of_two_cpus")]


@pytest.fixture
def spec(spec: LearnerSpec) -> LearnerSpec:
    """The tiny model's, with two ranks."""
    return changed(spec, learner={"num_ranks": 2, "zero_stage": 2, "step_timeout_s": 180})


async def test_two_ranks_of_unequal_shares_equal_one_rank_and_a_plain_learner(spec, tmp_path: Path) -> None:
    """A mean over ranks of means over samples would give 3 samples the weight of 4.

    Two ranks add the same float32 gradients in another order: 1e-6, with updates of 1e-2. A resumed
    group must take the same next step.
    """
    local = LocalLearner(spec, LocalBlobStore())
    await local.start()
    async with running(spec) as group:
        plain = PlainLearner(spec, await weights(group))
        for step in range(2):
            s = samples(step, number=7, stale=2 if step else 0)
            two = TrainBatch(step, SEED, ((tuple(s[:2]), tuple(s[4:6])), (tuple(s[2:4]), tuple(s[6:]))), 7)
            if step == 1:
                await group.save(tmp_path / "checkpoint-1", {"next_number": 8})
            result = await group.train(with_references(two))
            one = TrainBatch(step, SEED, ((tuple(s[:2]), tuple(s[2:4]), tuple(s[4:])),), 7)
            alone, oracle = await local.train(one), plain.train(s, SEED)
            for name, value in oracle.items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert result.version == alone.version == PolicyVersion(0, step + 1)
        got = await weights(group)
        assert difference(got, await weights(local)) <= 1e-6
        assert difference(got, plain.old[result.version]) <= 2e-6
        assert await group.probe(1) == pytest.approx(await local.probe(1), abs=1e-5)

        assert await group.load(tmp_path / "checkpoint-1") == {"next_number": 8}
        versions = {PolicyVersion(0, step): PolicyVersion(1, step) for step in range(2)}
        again = tuple(
            tuple(
                tuple(TrainSample(**(vars(x) | {"policy_version": versions[x.policy_version]})) for x in m)
                for m in r
            )
            for r in two.ranks
        )
        resumed = await group.train(with_references(TrainBatch(1, SEED, again, 7)))
        assert resumed.version == PolicyVersion(1, 2)
        assert difference(await weights(group), got) == 0

        unknown = tuple(tuple(tuple(samples(9, number=1)) for _ in range(2)) for _ in range(2))
        with pytest.raises(WeightMismatch, match=r"policy 0\.9"):
            await group.train(with_references(TrainBatch(2, SEED, unknown, 4)))
    await local.stop()


@pytest.mark.parametrize("zero_stage", [2, pytest.param(3, marks=pytest.mark.slow)])
async def test_a_penalty_that_counts_on_one_rank_only_equals_a_plain_learner(spec, zero_stage: int) -> None:
    """Under ZeRO 3 the other rank would wait for ever for its part of the reference's forward."""
    selective = {"kl_samples": "disagreeing", "main_reward": "a", "old_policy_decay": "none"}
    spec = dataclasses.replace(
        spec,
        algorithm=spec.algorithm.model_copy(update=selective | {"reference_max_kl": 1e9}),
        learner=spec.learner.model_copy(update={"zero_stage": zero_stage}),
    )
    async with running(spec) as group:
        plain = PlainLearner(spec, await weights(group))
        for step in range(2):
            s = [
                dataclasses.replace(x, kl_weight=6.0 * (i == 1))
                for i, x in enumerate(samples(step, number=6))
            ]
            batch = TrainBatch(step, SEED, ((tuple(s[:2]), (s[2],)), ((s[3],), tuple(s[4:]))), 6)
            result, oracle = await group.train(with_references(batch)), plain.train(s, SEED)
            for name, value in oracle.items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5, abs=1e-12), name
        assert result.metrics["kl_loss"] > 1e-6
        assert difference(await weights(group), plain.old[result.version]) <= 2e-6


@pytest.mark.slow
async def test_copies_without_weight_keep_ranks_in_step_and_change_nothing(spec) -> None:
    """A rank without a sample of some policy version would hang, or a copy would count twice."""
    spec = dataclasses.replace(spec, learner=spec.learner.model_copy(update={"zero_stage": 3}))
    async with running(spec) as group:
        plain = PlainLearner(spec, await weights(group))
        s = samples(0, number=3)
        copies = [dataclasses.replace(x, weight=0.0) for x in s]
        batch = TrainBatch(0, SEED, ((tuple(s[:2]), (s[2],)), ((copies[0],), (copies[2],))), 3)
        result, oracle = await group.train(with_references(batch)), plain.train(s, SEED)
        assert result.metrics["loss"] == pytest.approx(oracle["loss"], rel=2e-5)
        assert difference(await weights(group), plain.old[result.version]) <= 2e-6


@pytest.mark.slow
async def test_windows_of_several_starts_keep_ranks_in_step(spec) -> None:
    """Each earlier frame is a forward that gathers weights under ZeRO 3: one more on one rank would hang."""
    spec = dataclasses.replace(spec, learner=spec.learner.model_copy(update={"zero_stage": 3}))
    async with running(spec) as group:
        plain = PlainLearner(spec, await weights(group))
        for step in range(2):
            starts = (3, 3, 4, 4, 0, 0)
            s = [
                dataclasses.replace(sample, window_start=start)
                for start, sample in zip(starts, samples(step, number=6, frames=5), strict=True)
            ]
            batch = TrainBatch(step, SEED, (tuple((x,) for x in s[::2]), tuple((x,) for x in s[1::2])), 6)
            result, oracle = await group.train(with_references(batch)), plain.train(s, SEED)
            for name, value in oracle.items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5), name
        assert difference(await weights(group), plain.old[result.version]) <= 2e-6


class Dying:
    """Its payloads end with its process."""

    def payload(self) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


async def test_lost_latents_are_named_and_the_step_can_be_tried_with_others(spec: LearnerSpec) -> None:
    """The rank that misses some raises, the other waits for it in a collective; and all for one dead node."""
    lost = ray.remote(num_cpus=0)(Dying).remote().payload.remote()
    s = samples(0, number=4)
    whole = with_references(TrainBatch(0, SEED, ((tuple(s[:2]),), (tuple(s[2:]),)), 4))
    ((first,), (second,)) = whole.ranks
    torn = dataclasses.replace(
        whole, ranks=((first,), ((second[0], dataclasses.replace(second[1], latents=lost)),))
    )
    async with running(spec) as group:
        ranks, before = list(group._ranks), await weights(group)
        with pytest.raises(PayloadsLost, match=r"latents of 1 rollouts are lost. .*ActorDiedError") as caught:
            await asyncio.wait_for(group.train(torn), 30)
        assert caught.value.rollout_ids == ("train-0/3",)
        assert group._ranks == ranks
        assert difference(await weights(group), before) == 0
        assert (await group.train(whole)).version == PolicyVersion(0, 1)


def write_nothing(_: Any) -> None:
    """As if this rank wrote to a disk of its own node."""
    module: Any = sys.modules["learner.learner_worker"]
    module.save_checkpoint = module.leave_mark = lambda *_, **__: None


def collective_timeout_s(_: Any) -> float:
    group: Any = torch.distributed.group.WORLD
    return group._get_backend(torch.device("cpu")).options._timeout.total_seconds()


async def test_files_on_the_disk_of_another_node_are_noticed(
    spec: LearnerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every checkpoint reported as written, and a run of days resumed at step 0.

    Ranks wait for each other in a collective for as long as a step may take, not for half an hour.
    """
    monkeypatch.setattr("learner.shared_folder.SEEN_TIMEOUT_S", 1.0)
    async with running(spec) as group:
        assert not list(Path(spec.model.path).glob(".learner-*"))
        assert await group._ranks[1].__ray_call__.remote(collective_timeout_s) == 180
        for rank in group._ranks:
            await rank.__ray_call__.remote(write_nothing)
        with pytest.raises(ConfigError, match=r"checkpoint-1 is not the same folder .* manifest"):
            await group.save(tmp_path / "checkpoint-1", {})
        with pytest.raises(ConfigError, match=r"not the same folder .* not here after 1 s.*log_dir"):
            await group._require_shared_folder()


async def require_gone(rank: Any, timeout_s: float = 20) -> None:
    """`ray.kill` returns before its process has ended, and until then the process may still answer."""

    async def ask_for_ever() -> None:
        while True:
            await rank.__ray_ready__.remote()
            await asyncio.sleep(0.1)

    with pytest.raises(ray.exceptions.RayActorError):
        await asyncio.wait_for(ask_for_ever(), timeout_s)


async def test_a_killed_rank_ends_the_group_and_a_new_life_can_start(spec: LearnerSpec) -> None:
    """The surviving rank would wait in a collective until its timeout."""
    group = new_group(spec)
    await group.start()
    s = samples(0, number=4)
    batch = TrainBatch(0, SEED, ((tuple(s[:2]),), (tuple(s[2:]),)), 4)
    policy = await group.publish()
    ranks, room = list(group._ranks), group._placement
    ray.kill(ranks[1])
    with pytest.raises(InfraFailure, match="a learner rank failed, all ranks were ended"):
        await asyncio.wait_for(group.train(with_references(batch)), 30)
    for rank in ranks:
        await require_gone(rank)
    assert unpack(policy.manifest, ray.get(policy.buffer, timeout=10))  # published weights outlive their rank
    await group.start()
    assert group._placement is room, "rollout actors that scale up must not take it meanwhile"
    assert (await group.train(with_references(batch))).version == PolicyVersion(0, 1)
    await group.stop()
    assert {state["state"] for state in placement_group_table().values()} == {"REMOVED"}


async def test_a_group_without_room_says_what_it_needs(spec: LearnerSpec) -> None:
    """A pending placement group is the most common silent hang on a cluster."""
    large = dataclasses.replace(spec, learner=spec.learner.model_copy(update={"num_cpus": 64}))
    group = new_group(large, placement_timeout_s=2)
    with pytest.raises(ConfigError, match=r"no room for learner after 2 s: it needs 2 x"):
        await group.start()
