"""Variants of the algorithm differ in one thing, and staleness is exact."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import typer

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.types import PolicyVersion, RolloutRequest, TrainBatch, TrainSample
from benchmarks.algorithms import VARIANTS, LaggingPool, NewestOnly, Result, configured, staleness_chart
from learner.local import LocalLearner


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_the_default_but_for_what_it_is_named_after(variant: str) -> None:
    config = configured(variant, 3, 5, 7)
    make_plan(config)
    assert (config.seed, config.num_steps, config.evaluation.num_prompts) == (3, 5, 7)
    expected = int(variant.split("-")[1]) if variant.startswith("stale") else 0
    assert config.rollout.max_policy_age == expected
    default = configured("default", 3, 5, 7)
    timesteps = 2 if variant == "one-timestep" else config.algorithm.timesteps_per_sample
    if variant.startswith("compat"):
        compat = configured("compat", 3, 5, 7)
        assert (config.algorithm.nft_beta, config.lora.dtype) == (0.1, "bfloat16")
        assert (config.algorithm.adv_clip_max, config.learner.adam_eps) == (
            (5, 1e-8) if variant == "compat-adam" else (2, 1e-5)
        )
        assert config.algorithm.timesteps_per_sample == compat.algorithm.timesteps_per_sample == 1
    else:
        algorithm = config.algorithm.model_copy(update={"timesteps_per_sample": timesteps})
        assert (algorithm, config.learner) == (default.algorithm, default.learner)
        assert (config.algorithm == default.algorithm) == (variant != "one-timestep")


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(typer.BadParameter, match="'stale-3' is none of"):
        configured("stale-3", 0, 1, 1)


def test_groups_are_sampled_by_the_policy_of_so_many_steps_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that is only sometimes as old as the variant says blurs what is compared."""
    pool = LaggingPool.__new__(LaggingPool)
    pool._lag, pool._num_groups, pool._policies = 2, 4, {}
    used: list[Any] = []

    async def note(self: Any, request: Any, *, pinned: Any = None) -> list[Any]:
        used.append(pinned)
        return []

    monkeypatch.setattr(LocalRolloutPool, "generate", note)
    policies = [object() for _ in range(6)]
    pool._policies = dict(enumerate(policies))  # type: ignore[arg-type]
    for number in (0, 7, 8, 15, 23):
        asyncio.run(pool.generate(RolloutRequest(f"train-{number}", "a", (0,), (0,))))
    asyncio.run(pool.generate(RolloutRequest("before-3", "a", (0,), (0,)), pinned=policies[5]))  # type: ignore[arg-type]
    assert [policies.index(policy) for policy in used] == [0, 0, 0, 1, 3, 5]


def test_the_newest_policy_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainBatch] = []

    async def note(self: Any, batch: TrainBatch) -> Any:
        seen.append(batch)

    monkeypatch.setattr(LocalLearner, "train", note)
    learner = NewestOnly.__new__(NewestOnly)
    learner.worker = type("Worker", (), {"version": PolicyVersion(0, 5)})()  # type: ignore[assignment]
    sample = TrainSample("train-0/0", "a", PolicyVersion(0, 3), None, 1.0)  # type: ignore[arg-type]
    batch = TrainBatch(5, 0, (((sample, replace(sample, policy_version=PolicyVersion(0, 4))),),), 2)
    asyncio.run(learner.train(batch))
    ((micro_batch,),) = seen[0].ranks
    assert [s.policy_version for s in micro_batch] == [PolicyVersion(0, 5)] * 2
    assert [s.rollout_id for s in micro_batch] == ["train-0/0"] * 2


def test_the_figure_shows_both_ways_from_the_same_start() -> None:
    def result(variant: str, gain: float) -> Result:
        return Result(variant, 0, 44, 2.0, 2.0 + gain, gain, 0.01, {}, 0.0)

    rows = [result("default", 0.05), result("stale-4", 0.04), result("stale-4-newest", 0.01)]
    figure = staleness_chart(rows)
    assert "contrasted with the policy that sampled: 0.04 at 4" in figure
    assert "contrasted with the newest policy: 0.01 at 4" in figure
    assert figure.count("0.05 at 0") == 2
    assert figure.startswith("<svg xmlns=") and figure.rstrip().endswith("</svg>")
