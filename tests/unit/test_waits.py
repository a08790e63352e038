"""That sampling never waits for a GPU, on a machine without one: fake tensors say they are on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from actors.sampler import Sampler
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B, WanArchitecture
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.rope import frame_rotations, time_shift
from astrolabe_ray.models.wan.transformer import CausalWanModel
from benchmarks.sampling import Counter

TIMESTEPS = (1000.0, 937.5, 833.3, 625.0)
SIZE = (60, 104)  # of latents at 480 x 832 pixels


@pytest.fixture(autouse=True)
def no_rotations_are_kept() -> Iterator[None]:
    """Fake ones are good for one test."""
    frame_rotations.cache_clear()
    time_shift.cache_clear()
    yield
    frame_rotations.cache_clear()
    time_shift.cache_clear()


def on_fake_gpu(architecture: WanArchitecture) -> CausalWanModel:
    """One layer of it in bfloat16; what the host does is the same for each layer."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return CausalWanModel(replace(architecture, num_layers=1)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("architecture", [WAN_1_3B, WAN_14B], ids=["1.3B", "14B"])
@pytest.mark.parametrize(
    "rule",
    [ContextRule(3, None, 0), ContextRule(3, 12, 3, "relative"), ContextRule(1, 7, 1)],
    ids=["all frames", "window with sink", "frame by frame"],
)
def test_no_chunk_waits_for_the_gpu(rule: ContextRule, architecture: WanArchitecture) -> None:
    """Each wait lets the GPU run dry. 24 latent frames roll past the window; each chunk has new positions."""
    with FakeTensorMode():
        model = on_fake_gpu(architecture)
        size = (1, architecture.text_len, architecture.text_dim)
        text = model.encode_text(torch.zeros(size, dtype=torch.bfloat16, device="cuda"))
        generation = Sampler(model, rule, TIMESTEPS, 0.0).begin(text, (1, 2), 24, *SIZE)
        with Counter() as counter:
            chunks = [generation.extend() for _ in range(24 // rule.chunk_frames)]
        assert counter.num_syncs == 0
        assert {(chunk.device.type, chunk.shape[1]) for chunk in chunks} == {("cuda", rule.chunk_frames)}


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x + torch.arange(3.0).to("cuda"),
        lambda x: x + torch.arange(3.0).to("cuda", non_blocking=True),  # its source is not pinned
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_each_wait_is_counted(mode: Callable[[], Any], wait: Callable[[Tensor], object]) -> None:
    """Else the test above could not fail. The sampler runs in inference mode, where torch hides more."""
    with mode(), FakeTensorMode(), Counter() as counter:
        with suppress(DataDependentOutputException, DynamicOutputShapeException):  # there is nothing to read
            wait(torch.zeros(3, device="cuda"))
        assert counter.num_syncs == 1
