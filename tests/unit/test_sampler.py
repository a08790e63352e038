"""Sampling: seeds, batches and chunks."""

from __future__ import annotations

import torch

from actors.sampler import Sampler
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.transformer import TextKV
from tests.random_wan import ARCHITECTURE, prompts, random_model

TIMESTEPS = (1000.0, 937.5, 625.0)
RULE = ContextRule(3, 7, 1)


def test_a_video_does_not_depend_on_its_batch() -> None:
    """Work redone elsewhere, or regrouped, must give the same video."""
    model = random_model()
    text = model.encode_text(prompts(3))
    sampler = Sampler(model, RULE, TIMESTEPS, 0.0)
    together = torch.cat(list(sampler.sample(text, (5, 6, 7), 9, 4, 6)), dim=1)
    second = TextKV(tuple(k[1:2] for k in text.keys), tuple(v[1:2] for v in text.values))
    alone = torch.cat(list(sampler.sample(second, (6,), 9, 4, 6)), dim=1)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_cache_used_before_leaves_no_trace() -> None:
    """Frames of the last video would be attended to by the next one."""
    model = random_model()
    text = model.encode_text(prompts(1))
    sampler = Sampler(model, ContextRule(2, 5, 1, "relative"), TIMESTEPS, 0.0)
    first = list(sampler.sample(text, (1,), 8, 4, 6))
    list(sampler.sample(text, (2,), 8, 4, 6))
    again = list(sampler.sample(text, (1,), 8, 4, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_videos_of_any_length_share_the_memory_of_a_window() -> None:
    """Windows that end elsewhere for each group would allocate the largest part anew each time."""
    model = random_model()
    text, sampler = model.encode_text(prompts(1)), Sampler(model, ContextRule(2, 5, 1), TIMESTEPS, 0.0)
    list(sampler.sample(text, (1,), 12, 4, 6))
    memory = sampler._cache
    (_, _, third) = sampler.sample(text, (1,), 6, 4, 6)
    assert sampler._cache is memory
    alone = list(Sampler(model, ContextRule(2, 5, 1), TIMESTEPS, 0.0).sample(text, (1,), 6, 4, 6))
    assert torch.equal(third, alone[-1])
    list(sampler.sample(text, (1,), 4, 4, 6))
    assert sampler._cache is not memory  # shorter than the window


def test_one_prompt_serves_a_whole_group() -> None:
    """A group shares its text; the shared and the repeated keys must agree."""
    model = random_model()
    sampler = Sampler(model, RULE, TIMESTEPS, 0.0)
    shared = torch.cat(list(sampler.sample(model.encode_text(prompts(1)), (1, 2), 6, 4, 6)), dim=1)
    repeated_text = model.encode_text(prompts(1).repeat(2, 1, 1))
    repeated = torch.cat(list(sampler.sample(repeated_text, (1, 2), 6, 4, 6)), dim=1)
    torch.testing.assert_close(shared, repeated, atol=1e-5, rtol=1e-5)


def test_each_chunk_costs_its_steps_and_a_clean_pass_except_the_last() -> None:
    """A clean pass after the last chunk is work for nothing."""
    model, calls = random_model(), []
    model.patch_embedding.register_forward_hook(
        lambda module, inputs, output: calls.append(inputs[0].shape[1])
    )
    sampler = Sampler(model, RULE, TIMESTEPS, 0.0)
    chunks = list(sampler.sample(model.encode_text(prompts(1)), (1,), 7, 4, 6))
    assert [chunk.shape for chunk in chunks] == [(1, 3, 4, 4, 6), (1, 3, 4, 4, 6), (1, 1, 4, 4, 6)]
    assert calls == [3] * 4 + [3] * 4 + [1] * 3
    assert chunks[0].dtype == torch.float32


def test_a_bfloat16_model_is_sampled_with_float32_latents() -> None:
    """Rounding the latents at every step adds up over the chunks."""
    model = random_model().to(torch.bfloat16)
    sampler = Sampler(model, RULE, TIMESTEPS, 0.0)
    (chunk,) = sampler.sample(model.encode_text(prompts(1)), (1,), 3, 4, 6)
    assert chunk.dtype == torch.float32
    assert not torch.equal(chunk, chunk.bfloat16().float())
    assert ARCHITECTURE.in_channels == chunk.shape[2]
