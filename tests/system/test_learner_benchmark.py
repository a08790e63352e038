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
    cost = measure(way, 2, (MICRO_BATCHES, 1, RANK, 1), 200)
    times = {"zero 0": 1, "zero 1": 1}.get(way, MICRO_BATCHES)  # ZeRO 2 and 3 keep no whole gradient
    assert cost.step_s > 0 and cost.peak_mb > 100
    assert cost.sent_mb >= 0.99 * times * gradient_mb()
    if way in ("plain", "zero 0"):
        assert cost.sent_mb == pytest.approx(times * gradient_mb(), rel=0.02)
