"""A learner over the tiny model, and batches for it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch

from astrolabe_ray.config.schema import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import PolicyVersion, TrainBatch, TrainSample
from astrolabe_ray.weights.pack import unpack
from learner.local import LocalLearner
from learner.spec import LearnerSpec

SEED = 7
SELECTIVE = {
    "kl_samples": "disagreeing",
    "main_reward": "a",
    "reference_max_age": 2,
    "reference_max_kl": 1e9,
}


def spec_of(model_root: Path) -> LearnerSpec:
    """Everything on: stale samples, penalty, two timesteps, clipping, a slow old policy.

    adam_eps is large, so that an update is a smooth function of the gradient and float32 can be
    compared with float64: with 1e-8 a gradient of 1e-9 that is all rounding moves a weight by lr.
    """
    return LearnerSpec(
        model=ModelConfig(path=str(model_root), chunk_frames=1, window_frames=2, sink_frames=1),
        lora=LoraConfig(rank=2, alpha=4),
        algorithm=AlgorithmConfig(
            kl_coef=0.1, timesteps_per_sample=2, old_policy_decay="linear", nft_beta=0.5
        ),
        learner=LearnerConfig(lr=1e-2, adam_eps=1e-3, max_grad_norm=5e-3),
        max_policy_age=1,
        seed=3,
    )


def changed(spec: LearnerSpec, **sections: dict) -> LearnerSpec:
    updates = {name: getattr(spec, name).model_copy(update=values) for name, values in sections.items()}
    return dataclasses.replace(spec, **updates)


def samples(step: int, *, number: int = 6, stale: int = 0, frames: int = 3) -> list[TrainSample]:
    """`number` samples for `step`, the first `stale` of them made by the policy before."""
    rng = np.random.default_rng(step)
    return [
        TrainSample(
            rollout_id=f"train-{step}/{i}",
            prompt=("a red circle", "a blue square")[i % 2],
            policy_version=PolicyVersion(0, step - (i < stale)),
            latents=rng.standard_normal((frames, 4, 4, 4)).astype(np.float32),
            advantage=float(rng.normal(scale=3)),
        )
        for i in range(number)
    ]


def penalised(all_samples: list[TrainSample]) -> list[TrainSample]:
    """Every third sample counts three times for the KL, the others not at all."""
    return [dataclasses.replace(s, kl_weight=3.0 * (i % 3 == 1)) for i, s in enumerate(all_samples)]


def batch(step: int, *micro_batches: list[TrainSample]) -> TrainBatch:
    number = sum(map(len, micro_batches))
    return TrainBatch(step=step, seed=SEED, ranks=(tuple(map(tuple, micro_batches)),), num_samples=number)


@asynccontextmanager
async def running(spec: LearnerSpec) -> AsyncIterator[LocalLearner]:
    learner = LocalLearner(spec, LocalBlobStore())
    try:
        await learner.start()
        yield learner
    finally:
        await learner.stop()


async def published(learner: LocalLearner, adapter="old") -> dict[str, torch.Tensor]:
    policy = await learner.publish(adapter)
    return {name: t.clone() for name, t in unpack(policy.manifest, policy.buffer).items()}


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], atol: float) -> None:
    assert list(got) == list(want)
    worst = max((got[name].double() - want[name].double()).abs().max().item() for name in want)
    assert worst <= atol
