"""The plain sampler that the benchmark compares with, and what the benchmark counts."""

from __future__ import annotations

import pytest
import torch

from actors.sampler import Sampler
from astrolabe_ray.models.wan.context import ContextRule
from benchmarks.plain_sampling import plain_sample
from benchmarks.sampling import Counter
from tests.random_wan import prompts, random_model

TIMESTEPS = (1000.0, 937.5, 625.0)
RULES = (
    ContextRule(3, None, 0),
    ContextRule(3, 7, 1),
    ContextRule(3, 7, 1, "relative"),
    ContextRule(2, 5, 3, "relative"),
)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_both_ways_of_caching_give_the_same_video(rule: ContextRule) -> None:
    """A comparison of speed between two different computations."""
    model, text = random_model(), prompts(1)
    ring = Sampler(model, rule, TIMESTEPS, 0.0).sample(model.encode_text(text), (3, 4), 11, 4, 6)
    plain = plain_sample(model, rule, TIMESTEPS, text, (3, 4), 11, 4, 6)
    torch.testing.assert_close(torch.cat(list(ring), dim=1), plain, atol=2e-4, rtol=2e-4)


def test_copies_and_waits_are_counted() -> None:
    """A count of zero because nothing is seen: 40 and 16 bytes are copied, one value is waited for."""
    x = torch.ones(10)
    with Counter() as counter:
        y = x.clone()
        y[:4] = x[:4]
        y.sum().item()
        torch.add(x, y)
    assert (counter.copied_bytes, counter.num_syncs) == (56, 1)
