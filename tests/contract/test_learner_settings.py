"""Settings that say where things lie and what is recomputed must not change what is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.spec import LearnerSpec
from tests.learner_cases import SEED, assert_close, batch, changed, published, running, samples
from tests.plain_learner import PlainLearner


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 1, "offload_optimizer": True},
        {"zero_stage": 2, "offload_optimizer": True},
        {"zero_stage": 3, "offload_optimizer": True},
        {"zero_stage": 2, "gradient_checkpointing": True, "keep_attention": True},
        {"zero_stage": 2, "lr_schedule": "linear", "lr_warmup_steps": 1, "lr_decay_steps": 2},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
async def test_two_steps_with_a_setting_equal_a_plain_learner(
    spec: LearnerSpec, settings: dict[str, Any]
) -> None:
    """An optimizer in host memory that is not stepped, or a rate that the wrapped optimizer never sees."""
    spec = changed(spec, learner=settings)
    rates = [0.5, 1.0] if "lr_warmup_steps" in settings else [1.0, 1.0]
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step, share in enumerate(rates):
            plain.spec = changed(spec, learner={"lr": share * spec.learner.lr})
            s = samples(step, number=3)
            result = await learner.train(batch(step, s[:2], s[2:]))
            assert result.metrics["lr"] == pytest.approx(share * spec.learner.lr)
            for name, value in plain.train(s, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
        assert_close(await published(learner), plain.old[result.version], atol=2e-6)
        moments, num_updates = learner.worker._engine.optimizer_state()
        learner.worker._engine.load_optimizer_state(moments, num_updates)
        again, _ = learner.worker._engine.optimizer_state()
        assert num_updates == 2 and all(torch.equal(again[key], moments[key]) for key in moments)
