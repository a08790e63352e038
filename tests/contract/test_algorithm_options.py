"""Options of the loss, one at a time, in a step of the real learner against the plain float64 one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.spec import LearnerSpec
from tests.learner_cases import SEED, assert_close, batch, changed, published, running, samples
from tests.plain_learner import PlainLearner


@pytest.mark.parametrize(
    "options",
    [
        {"loss_space": "v"},
        {"train_timesteps": "plain"},
        {"train_timesteps": "plain", "x0_sigma": "table"},
        {"clean_context": False},
        {"clean_context": False, "context_mask": "frame"},
    ],
    ids=lambda options: ",".join(options),
)
async def test_two_steps_with_an_option_equal_a_plain_learner(
    spec: LearnerSpec, options: dict[str, Any]
) -> None:
    """An option that is read nowhere, or in one of the three forwards only. Chunks of two, so that frames
    are not chunks."""
    spec = changed(
        spec, model={"chunk_frames": 2, "window_frames": 3, "denoising_steps": (900, 500)}, algorithm=options
    )
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step in range(2):
            s = samples(step, number=3, frames=4)
            result = await learner.train(batch(step, s[:2], s[2:]))
            for name, value in plain.train(s, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-9), name
        assert_close(await published(learner), plain.old[result.version], atol=2e-5)


async def test_a_microbatch_that_draws_for_all_equals_a_plain_learner(spec: LearnerSpec) -> None:
    """The first one's noise for all, or timesteps of the batch's first sample instead of the microbatch's."""
    steps = {"denoising_steps": (1000, 900, 700, 500, 300)}
    spec = changed(spec, model=steps, algorithm={"timestep_draw": "microbatch", "timesteps_per_sample": 1})
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step in range(2):
            s = samples(step, number=5)
            result = await learner.train(batch(step, s[:3], s[3:]))
            for name, value in plain.train(s, SEED, leaders=[s[0]] * 3 + [s[3]] * 2).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-4, abs=1e-9), name
        assert_close(await published(learner), plain.old[result.version], atol=2e-5)


async def test_bfloat16_adapters_and_loss_are_bfloat16_all_the_way(spec: LearnerSpec) -> None:
    """The comparison with the first release would keep what that one loses: most of A can't move at 1e-5."""
    narrow = {"loss_dtype": "bfloat16", "old_policy_decay": "linear"}
    spec = changed(spec, learner={"zero_stage": 0, "lr": 1e-5}, lora={"dtype": "bfloat16"}, algorithm=narrow)
    async with running(spec) as learner:
        before = await published(learner)
        for step in range(2):
            await learner.train(batch(step, samples(step, number=3)))
        engine = learner.worker._engine
        moments = [state["exp_avg_sq"].dtype for state in engine._adam.state.values()]
        after, ema = await published(learner), await published(learner, "ema")
    assert set(moments) == {torch.bfloat16}
    for tensors in (after, ema):
        assert all(torch.equal(t, t.bfloat16().float()) for t in tensors.values())
    large = torch.cat([before[n].flatten().abs() > 2**-6 for n in before if n.endswith("lora_A")])
    moved = torch.cat([(after[n] != before[n]).flatten() for n in before if n.endswith("lora_A")])
    assert large.any() and not moved[large].any()
    assert all((after[n] != before[n]).any() for n in before if n.endswith("lora_B"))
