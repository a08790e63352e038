"""The learner's benchmark with real ranks: it ends, and what it counts is what was sent."""

from __future__ import annotations

import pytest
import torch

from astrolabe_ray.config.schema import LoraConfig, ModelConfig
from astrolabe_ray.models.lora import adapter_tensors, add_adapters
from astrolabe_ray.models.registry import load_transformer, resolve
from benchmarks.learner import WAYS, measure

RANK, MICRO_BATCHES = 4, 3

pytestmark = [pytest.mark.system, pytest.mark.slow]


def gradient_mb() -> float:
    """Float32 gradients of one adapter of the embedded model."""
    model = add_adapters(
        load_transformer(resolve(ModelConfig().path), torch.float32, "cpu"),
        LoraConfig(rank=RANK, alpha=RANK),
        ("default",),
    )
    return sum(t.numel() * 4 for t in adapter_tensors(model, "default").values()) / 1e6


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_come_to_an_end_and_send_gradients_as_often_as_the_way_says(way: str) -> None:
    """Ranks that never met, and megabytes of functions that nobody counted."""
    cost = measure(way, 2, (MICRO_BATCHES, 1, RANK, 1), timeout_s=200)
    half = 0.5  # of the weights, which each of two ranks hands to the other under ZeRO 1 and 2
    times = {
        "plain": MICRO_BATCHES,
        "zero 0": 1,
        "zero 1": 1 + half,
        "zero 2": MICRO_BATCHES + half,  # keeps no whole gradient
    }
    assert cost.step_s > 0 and cost.peak_mb > 100
    if way in times:
        assert cost.sent_mb == pytest.approx(times[way] * gradient_mb(), rel=0.02)
    else:  # ZeRO 3 also gathers weights in every forward and backward
        assert cost.sent_mb > 2 * MICRO_BATCHES * gradient_mb()
