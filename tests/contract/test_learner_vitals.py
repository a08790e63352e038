"""The signs of life that a step reports, against DeepSpeed's own norm and the published weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner.spec import LearnerSpec
from learner.vitals import gradient_norms
from tests.learner_cases import (
    batch,
    changed,
    published,
    running,
    samples,
)

KINDS = {*(f"{a}_attn.{name}" for a in ("self", "cross") for name in "qkvo"), "ffn.0", "ffn.2"}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
async def test_gradients_of_the_layers_add_up_to_that_of_the_whole(spec: LearnerSpec, stage: int) -> None:
    """A partition of a rank taken for the whole, or a gradient that was clipped or cleared before."""
    async with running(changed(spec, learner={"zero_stage": stage})) as learner:
        for step in range(2):
            metrics = (await learner.train(batch(step, samples(step)[:3], samples(step)[3:]))).metrics
            norms = {n.partition("/")[2]: v for n, v in metrics.items() if n.startswith("grad_norm/")}
            assert norms.keys() == KINDS
            whole = math.sqrt(sum(norm**2 for norm in norms.values()))
            assert whole == pytest.approx(metrics["grad_norm"], rel=1e-4)
            assert min(norms.values()) > 0
            assert all(0 < metrics[f"grad_norm_weakest/{kind}"] <= norm for kind, norm in norms.items())
            of_modules = [norm for n, norm in metrics.items() if n.startswith("grad_norm_module/blocks.")]
            assert len(of_modules) == 2 * len(KINDS)
            assert math.sqrt(sum(norm**2 for norm in of_modules)) == pytest.approx(whole)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
async def test_a_module_that_the_loss_does_not_depend_on_has_the_norm_zero(
    spec: LearnerSpec, stage: int
) -> None:
    """A layer that is not connected has no gradient at all, and would be missing where it should alarm."""
    async with running(changed(spec, learner={"zero_stage": stage})) as learner:
        engine = learner.worker._engine
        own = engine._tensors["default"]["blocks.1.ffn.2.lora_A"]
        with engine._whole("default"):
            engine.backward((3 * own).sum(), last=True)
        norms = gradient_norms(engine)
    found = {n: norm for n, norm in norms.items() if n.startswith("grad_norm_module/") and norm > 0}
    assert found == {"grad_norm_module/blocks.1.ffn.2": 24.0}, "3 for each of 2 x 32 numbers"
    assert norms["grad_norm_weakest/ffn.2"] == 0 and len(norms) == 2 * len(KINDS) + 2 * len(KINDS)


def test_a_layer_that_is_dead_in_one_block_is_seen() -> None:
    """Over all blocks a kind of layer looks well with one of 30 alive."""
    gradients = {
        "blocks.0.self_attn.q.lora_A": torch.tensor([[3.0, 0.0]]),
        "blocks.0.self_attn.q.lora_B": torch.tensor([[4.0]]),
        "blocks.1.self_attn.q.lora_A": torch.zeros(1, 2),
        "blocks.1.self_attn.q.lora_B": torch.zeros(1, 1),
        "blocks.10.ffn.0.lora_A": torch.tensor([[5.0, 12.0]]),
        "blocks.10.ffn.0.lora_B": torch.zeros(()),
    }
    engine: Any = SimpleNamespace(gradients=gradients.items)
    assert gradient_norms(engine) == {
        "grad_norm_module/blocks.0.self_attn.q": 5.0,
        "grad_norm_module/blocks.1.self_attn.q": 0.0,
        "grad_norm_module/blocks.10.ffn.0": 13.0,
        "grad_norm/self_attn.q": 5.0,
        "grad_norm/ffn.0": 13.0,
        "grad_norm_weakest/self_attn.q": 0.0,
        "grad_norm_weakest/ffn.0": 13.0,
    }


async def test_norms_are_those_of_the_policies_and_unmoved_is_what_stayed(spec: LearnerSpec) -> None:
    """A drift of the wrong adapter, or of the one before the step, warns a step late or never."""
    async with running(spec) as learner:
        for step in range(3):
            before = learner.worker._engine.read("default")
            metrics = (await learner.train(batch(step, samples(step)))).metrics
            after = learner.worker._engine.read("default")
        assert metrics["adapter_norm/default"] == pytest.approx(float(after.norm()))
        for adapter in ("old", "ema"):
            flat = torch.cat([t.flatten() for t in (await published(learner, adapter)).values()])
            assert metrics[f"adapter_norm/{adapter}"] == pytest.approx(float(flat.norm()))
        assert metrics["health/unmoved"] == pytest.approx((before == after).sum().item() / len(after))
        assert metrics["health/unmoved"] < 0.1


async def test_weights_that_a_small_step_does_not_move_are_counted(spec: LearnerSpec) -> None:
    """At this rate float32 loses every update of A, which is of the order of 0.1; B begins at 0."""
    async with running(changed(spec, learner={"lr": 1e-12})) as learner:
        for step in range(2):
            metrics = (await learner.train(batch(step, samples(step)))).metrics
        weights = await published(learner)
    size = {f: sum(t.numel() for n, t in weights.items() if n.endswith(f"lora_{f}")) for f in "AB"}
    assert metrics["health/unmoved"] == pytest.approx(size["A"] / (size["A"] + size["B"]), abs=0.05)
