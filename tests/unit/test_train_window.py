"""Training on a window of a long video, against forwards of the whole video."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import SharedPast
from tests.random_wan import prompts, random_model, video

TOKENS = 2 * 3  # of a latent frame
RULES = [
    ContextRule(3, 7, 1),
    ContextRule(3, 7, 1, "relative"),
    ContextRule(2, 5, 3, "relative"),
    ContextRule(2, 4, 0),
    ContextRule(3, None, 0),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[ContextRule, int, int]:
    """A rule, where the window starts, and where it ends: sinks and the cache's ring end anywhere."""
    chunk = draw(st.integers(1, 4))
    sink = draw(st.integers(0, 2 * chunk))
    window = draw(st.none() | st.integers(sink + chunk, sink + chunk + 4))
    rule = ContextRule(chunk, window, sink, draw(st.sampled_from(["absolute", "relative"])))
    first = chunk * draw(st.integers(0, 4))
    return rule, first, first + draw(st.integers(1, 2 * chunk + 1))


@given(cases())
@settings(max_examples=25, deadline=None)
def test_the_flow_of_a_window_is_that_of_the_whole_video(case: tuple[ContextRule, int, int]) -> None:
    """A frame too few in the cache, a sink at the wrong position, a window whose positions start at 0."""
    rule, first, end = case
    model, clean, noisy, text = random_model(2), video(4, end), video(5, end), prompts()
    t = torch.rand(2, end, generator=torch.Generator().manual_seed(3)) * 1000
    with torch.no_grad():
        whole = model(noisy, t, text, rule, clean, context_timestep=20.0)
        window = model(noisy[:, first:], t[:, first:], text, rule, clean, context_timestep=20.0)
    torch.testing.assert_close(window, whole[:, first:], atol=1e-4, rtol=1e-4)


def without_gradient(num_tokens: int, module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
    return torch.cat([output[:, :num_tokens].detach(), output[:, num_tokens:]], dim=1)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_gradient_of_a_window_ends_where_it_starts(rule: ContextRule, checkpointing: bool) -> None:
    """Context that is trained, too, or clean frames inside the window that are not.

    The whole video's forward is told to detach the keys and values of the clean frames before the window,
    which are all that the window's frames see of them.
    """
    first, end = 6, 12
    model, clean, noisy, text = random_model(6), video(7, end), video(8, end), prompts()
    t = torch.full((2, end), 500.0)
    model.gradient_checkpointing = checkpointing
    model(noisy[:, first:], t[:, first:], text, rule, clean).square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for block in model.blocks:
        for last in (block.self_attn.norm_k, block.self_attn.v):
            last.register_forward_hook(partial(without_gradient, first * TOKENS))
    model(noisy, t, text, rule, clean)[:, first:].square().mean().backward()
    whole = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_past_that_is_computed_once_gives_the_same_flow_and_gradient(
    rule: ContextRule, checkpointing: bool
) -> None:
    """Keys and values of one video beside those of a batch: the wrong sample's, or the wrong sink's.

    Twice with the same past, so that a forward that changes what it was given shows in the second.
    """
    model, first, t = random_model(6), 6, torch.full((2, 6), 500.0)
    model.gradient_checkpointing = checkpointing
    text, history, shared = prompts(1).expand(2, -1, -1), video(7, first, batch=1), SharedPast()
    looked: list[int] = []
    model.patch_embedding.register_forward_pre_hook(lambda module, args: looked.append(args[0].shape[1]))
    for seed in (8, 9):
        clean = torch.cat([history.expand(2, -1, -1, -1, -1), video(seed, 6)], dim=1)
        found = []
        for past in (shared, None):
            model.zero_grad()
            flow = model(video(seed + 9, 6), t, text, rule, clean, shared_past=past)
            flow.square().mean().backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            found.append((flow, gradients))
        (flow, gradients), (want, want_gradients) = found
        torch.testing.assert_close(flow, want, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == want_gradients.keys()
        for name, gradient in want_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, atol=2e-5, rtol=1e-3, msg=name)
    chunks = len(rule.chunks(first))
    assert len(looked) == 3 * chunks + 4  # the shared history once, each own one, and four windows


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_an_attached_context_gets_the_gradient_of_the_whole_video(rule: ContextRule) -> None:
    """Context that is computed with gradients but at other positions, or of which a part stays cut off."""
    model, clean, noisy, text = random_model(6), video(7, 12), video(8, 12), prompts()
    t, found = torch.full((2, 12), 500.0), []
    for first, keep in ((6, 0), (0, 6)):  # the window by itself, then the window's part of the whole
        model.zero_grad()
        flow = model(noisy[:, first:], t[:, first:], text, rule, clean, detach_context=False)[:, keep:]
        flow.square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    window, whole = found
    assert window.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(window[name], gradient, atol=2e-5, rtol=1e-3, msg=name)


def saved_bytes(first: int, rule: ContextRule, *, detach_context: bool = True) -> int:
    """Memory that a window of 6 frames behind `first` others keeps for its backward pass."""
    model, clean, noisy = random_model(1), video(2, first + 6), video(3, 6)
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        flow = model(noisy, torch.full((2, 6), 500.0), prompts(), rule, clean, detach_context=detach_context)
    flow.sum().backward()
    return sum(found.values())


def test_activations_do_not_grow_with_the_video() -> None:
    """A long video would not fit, though only its last frames are trained on."""
    rule = ContextRule(3, 7, 1)
    short, long, longer = (saved_bytes(first, rule) for first in (6, 30, 60))
    assert short == long == longer
    assert long < 0.2 * saved_bytes(0, rule) * (66 / 6)  # of training on all 66 frames
    assert saved_bytes(30, rule, detach_context=False) > 3 * long


def test_each_frame_before_the_window_is_computed_once() -> None:
    """Once per chunk of the window, or with its noisy twin, would cost as much as the whole video."""
    model, rule, frames = random_model(1), ContextRule(3, 7, 1), []
    model.patch_embedding.register_forward_pre_hook(lambda module, args: frames.append(args[0].shape[1]))
    model(video(2, 6), torch.full((2, 6), 500.0), prompts(), rule, video(3, 18))
    assert frames == [3, 3, 3, 3, 3 + 6]  # four chunks, then the window: its clean frames but the last chunk
