"""The plain sampler that the benchmark compares with, and what the benchmark counts."""

from __future__ import annotations

import pytest
import torch
import typer
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from actors.sampler import Sampler
from astrolabe_ray.models.wan.context import ContextRule
from benchmarks.plain_sampling import plain_sample
from benchmarks.sampling import CompiledBlocks, Counter, Ring, chosen_ways, measure
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


def test_what_an_operation_consists_of_is_counted_in_inference_mode_too() -> None:
    """The sampler runs in it: its copies and waits were not seen, and passed for none."""
    with torch.inference_mode(), Counter() as counter:
        x = torch.ones(2, 5)
        x.T.reshape(10)  # 40 bytes
        x.to(torch.float64)  # 80
        x.T.contiguous()  # 40
        x[0, 0].item()
    assert (counter.copied_bytes, counter.num_syncs) == (160, 1)


def test_reads_masks_and_blocking_copies_are_waits() -> None:
    """Only reads of one value were seen: a mask in the attention would have passed as free."""
    x = torch.arange(6.0)
    with Counter() as counter:
        torch.nonzero(x)
        x[x > 2]
        x[x > 2] = torch.zeros(3)
        x[x > 2] = 0.0  # fills in place, without looking for the places
        torch.masked_select(x, x > 2)
        x[torch.tensor([1, 2])]
        x + 1
    assert counter.num_syncs == 4
    with FakeTensorMode(), Counter() as counter:
        there = torch.empty(3, device="cuda")
        here = there.to("cpu")
        here.to("cuda")
        here.to("cuda", non_blocking=True)  # not pinned
        there.copy_(here)
        there.to("cpu", non_blocking=True)
        pinned = torch.empty(3, pin_memory=True).copy_(here)
        pinned.to("cuda")
        pinned.to("cuda", non_blocking=True)
        there.copy_(pinned, non_blocking=True)
        there.to(torch.bfloat16)
    assert counter.num_syncs == 5


def test_each_way_is_measured_without_the_cache_of_another() -> None:
    """The memory of the plain way had the ring's cache in it."""
    model, text, held = random_model(), prompts(1), []
    ring = Ring(
        lambda: Sampler(model, RULES[1], TIMESTEPS, 0.0),
        lambda sampler: sampler.sample(model.encode_text(text), (3,), 6, 4, 6),
    )

    def plain() -> Tensor:
        held.append(ring._sampler._cache)
        torch.zeros(500).add(1)  # two at a time, then none
        return torch.zeros(750)

    weights, ways = list(model.parameters()), {"ring": ring, "plain": plain}
    speeds = measure(ways, weights, 21, 2, 1, "cpu", drop_cache=ring.drop_cache)
    assert held[0] is not None, "while they are timed it stays"
    assert held[1:] == [None, None]
    assert speeds["plain"].peak_mb == 4e-3
    assert speeds["ring"].peak_mb > 1e-2, "its cache and the weights that it reads"


def test_cuda_graphs_are_told_once_a_forward_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a replay may overwrite what the blocks before it have just made."""
    marks: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, text = random_model(), prompts(1)
    assert len(model.blocks) > 1
    sampler = Sampler(model, RULES[1], TIMESTEPS, 0.0)
    with CompiledBlocks(model, "reduce-overhead"):
        list(sampler.sample(model.encode_text(text), (3,), 6, 4, 6))
    assert len(marks) == 2 * len(TIMESTEPS) + 1, "two chunks, and the clean pass of the first"


@pytest.mark.parametrize(("text", "name"), [("ring,nosuch", "nosuch"), ("", ""), ("plain,,ring", "")])
def test_a_way_that_there_is_not_is_named_with_those_that_there_are(text: str, name: str) -> None:
    """A bare KeyError, after the model was built."""
    with pytest.raises(
        typer.BadParameter, match=f"no way '{name}'; there are: plain, ring, compiled, graphs"
    ):
        chosen_ways(text)
    assert chosen_ways("ring, graphs") == ["ring", "graphs"]
