"""What only a GPU can show: that sampling never waits for it, that kernels agree, that noise is the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from actors.sampler import Sampler
from astrolabe_ray.models.lora import MergedLinears, block_linears
from astrolabe_ray.models.registry import resolve
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.wan.architecture import WanArchitecture
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import KERNELS, choose_kernel, obstacle
from astrolabe_ray.models.wan.rope import frame_rotations, time_shift
from astrolabe_ray.models.wan.transformer import CausalWanModel
from tests.random_wan import prompts, random_model

pytestmark = pytest.mark.gpu
TIMESTEPS = (1000.0, 937.5, 625.0)
CUDA = torch.device("cuda")
HEADS_OF_64 = WanArchitecture(128, 2, 2, 128, 16, 12, 5, in_channels=4, out_channels=4)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_no_chunk_waits_for_the_device(rope: str) -> None:
    """Each wait lets the GPU run dry: dozens per forward cost more than small models' computation."""
    rule = ContextRule(3, 7, 1, "relative" if rope == "relative" else "absolute")
    model = random_model().to(CUDA)
    sampler = Sampler(model, rule, TIMESTEPS, 0.0)
    text = model.encode_text(prompts(1).to(CUDA))
    list(sampler.sample(text, (1, 2), 15, 4, 6))  # kernels are loaded from now on
    frame_rotations.cache_clear()  # positions are not: in a long video they are new in each chunk
    time_shift.cache_clear()
    generation = sampler.begin(text, (1, 2), 15, 4, 6)
    with waits_are_errors():
        for _ in range(5):
            generation.extend()


def test_a_video_on_the_gpu_is_that_on_the_cpu() -> None:
    """Noise drawn on the device would make a seed mean another video on each kind of hardware."""
    rule = ContextRule(3, 7, 1, "relative")
    videos = []
    for device in ("cpu", "cuda"):
        model = random_model().to(device)
        sampler = Sampler(model, rule, TIMESTEPS, 0.0)
        chunks = sampler.sample(model.encode_text(prompts(1).to(device)), (3,), 9, 4, 6)
        videos.append(torch.cat(list(chunks), dim=1).cpu())
    torch.testing.assert_close(videos[0], videos[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["flash2", "flash3"])
def test_flash_kernels_agree_with_sdpa(name: str) -> None:
    """A kernel with another scale or layout of heads still gives smooth videos."""
    flash = "flash2" if name == "flash2" else "flash3"
    reason = obstacle(flash, torch.cuda.get_device_capability(), torch.bfloat16)
    if reason:
        pytest.skip(reason)
    generator = torch.Generator(CUDA).manual_seed(0)
    q, k, v = (torch.randn(2, n, 4, 64, generator=generator, device=CUDA).bfloat16() for n in (48, 96, 96))
    torch.testing.assert_close(KERNELS[flash](q, k, v), KERNELS["sdpa"](q, k, v), atol=2e-2, rtol=2e-2)


def test_a_model_samples_with_the_kernel_that_was_chosen_for_it() -> None:
    """The best kernel of this GPU must take the shapes that sampling gives it."""
    torch.manual_seed(0)
    model = CausalWanModel(HEADS_OF_64).to(CUDA, torch.bfloat16).eval()
    torch.nn.init.normal_(model.head.head.weight, std=0.2)
    sampler = Sampler(model, ContextRule(3, 7, 1), TIMESTEPS, 0.0)
    videos = []
    for kernel in (choose_kernel("auto", CUDA, torch.bfloat16), "sdpa"):
        model.use_attention(kernel)
        text = model.encode_text(prompts(1).to(CUDA))
        videos.append(torch.cat(list(sampler.sample(text, (3,), 9, 4, 6)), dim=1))
    assert (videos[0] - videos[1]).abs().mean() < 0.05


def test_what_rests_on_the_host_gives_the_same_and_leaves_the_gpu() -> None:
    """A base that is brought to the device in another precision, or a text encoder that stays there."""
    weights = []
    for on_host in (False, True):
        model = random_model().to(CUDA, torch.bfloat16)
        factors = {}
        generator = torch.Generator().manual_seed(0)
        for name, linear in block_linears(model).items():
            factors[f"{name}.lora_A"] = torch.randn(2, linear.in_features, generator=generator)
            factors[f"{name}.lora_B"] = torch.randn(linear.out_features, 2, generator=generator)
        merged = MergedLinears(model, 0.5, base_on_host=on_host)
        assert merged.load(factors) == merged.load(factors) == len(block_linears(model))
        weights.append([linear.weight for linear in block_linears(model).values()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    files = resolve("builtin:sprites")
    before = torch.cuda.memory_allocated()
    encoder = TextEncoder.load(files.text_encoder, files.tokenizer, 16, CUDA, torch.float32, on_host=True)
    expected = TextEncoder.load(files.text_encoder, files.tokenizer, 16, "cpu", torch.float32)
    found = encoder.encode(["a red circle"])
    assert found.device.type == "cuda"
    assert torch.cuda.memory_allocated() - before < 2 * found.untyped_storage().nbytes() + 2**20
    torch.testing.assert_close(found.cpu(), expected.encode(["a red circle"]), atol=1e-3, rtol=1e-3)
