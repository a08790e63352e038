"""The causal transformer against plain, slow and foreign versions of itself."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Transformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from actors.sampler import Sampler
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B, WanArchitecture
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import KVCache
from astrolabe_ray.models.wan.rope import frame_rotations
from astrolabe_ray.models.wan.transformer import CausalWanModel
from tests.plain_wan import chunk_views, plain_flow, plain_sample, window_lists
from tests.random_wan import ARCHITECTURE, prompts, random_model, video

TIMESTEPS = (1000.0, 937.5, 625.0)
RULES = [
    ContextRule(1, None, 0),
    ContextRule(3, 7, 1),
    ContextRule(3, 7, 1, "relative"),
    ContextRule(2, 5, 3),
    ContextRule(2, 5, 3, "relative"),
    ContextRule(2, 4, 0, "relative"),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[ContextRule, int]:
    """A rule and the length of a video, long enough for frames to be evicted in most draws."""
    chunk = draw(st.integers(1, 4))
    sink = draw(st.integers(0, 2 * chunk))
    window = draw(st.none() | st.integers(sink + chunk, sink + chunk + 4))
    rule = ContextRule(chunk, window, sink, draw(st.sampled_from(["absolute", "relative"])))
    return rule, draw(st.integers(1, 3 * chunk + 3))


SEEDS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=2)


@given(cases(), SEEDS)
@settings(max_examples=15, deadline=None)
def test_cached_sampling_equals_recomputing_every_earlier_frame(
    case: tuple[ContextRule, int], seeds: list[int]
) -> None:
    """The cache could keep noisy keys, evict a sink, lose a position, show an evicted frame, or give one
    video of a batch the noise, the text or the keys of another.
    """
    rule, length = case
    model, text = random_model(), prompts(len(seeds), 3)
    sampler = Sampler(model, rule, TIMESTEPS[:2], context_timestep=20.0)
    cached = torch.cat(list(sampler.sample(model.encode_text(text), seeds, length, 2, 4)), dim=1)
    plain = plain_sample(model, rule, TIMESTEPS[:2], 20.0, text, seeds, (length, 4, 2, 4))
    torch.testing.assert_close(cached.double(), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_training_on_noisy_context_equals_a_frame_by_frame_computation(rule: ContextRule) -> None:
    """A slice of keys could be off by a frame, or the sink left out."""
    model, x, text = random_model(1), video(2, 8), prompts(rows=3)
    t = torch.rand(2, 8, generator=torch.Generator().manual_seed(3)) * 1000
    views = [
        view
        for (start, end), frames in zip(rule.chunks(8), window_lists(rule, 8), strict=True)
        for view in chunk_views(rule, frames, end - start, lambda frame: frame)
    ]
    flow = model(x, t, text, rule)
    torch.testing.assert_close(flow.double(), plain_flow(model, x, t, text, views), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_training_on_clean_context_sees_what_cached_sampling_sees(rule: ContextRule) -> None:
    """The update would otherwise be computed for another policy than the one that sampled."""
    model, clean, noisy, text = random_model(2), video(4, 8), video(5, 8), prompts()
    t = torch.full((2, 8), 625.0)
    trained = model(noisy, t, text, rule, clean, context_timestep=20.0)
    text_kv = model.encode_text(text)
    cache = KVCache(
        ARCHITECTURE,
        rule,
        batch=2,
        num_frames=8,
        grid=(2, 3),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    for start, end in rule.chunks(8):
        cache.begin(end - start)
        sampled = model.chunk_forward(noisy[:, start:end], model.at_timestep(625.0), text_kv, cache)
        torch.testing.assert_close(trained[:, start:end], sampled, atol=1e-4, rtol=1e-4)
        model.chunk_forward(clean[:, start:end], model.at_timestep(20.0), text_kv, cache)


def diffusers_name(name: str) -> str:
    """The name of an original Wan parameter in the diffusers class; a one-to-one map."""
    renames = (
        (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
        (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
        (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
        (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
        (r"^time_projection\.1", "condition_embedder.time_proj"),
        (r"^head\.modulation", "scale_shift_table"),
        (r"^head\.head", "proj_out"),
        (r"\.modulation", ".scale_shift_table"),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"(attn\d)\.([qkv])\.", r"\1.to_\2."),
        (r"(attn\d)\.o\.", r"\1.to_out.0."),
        (r"\.norm3\.", ".norm2."),
        (r"\.ffn\.0\.", ".ffn.net.0.proj."),
        (r"\.ffn\.2\.", ".ffn.net.2."),
    )
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("per_frame", [False, True])
def test_the_training_forward_equals_the_chunk_causal_model_of_diffusers(per_frame: bool) -> None:
    """Our arithmetic could depart from Wan's in a way that our own oracle repeats."""
    ours = random_model(3)
    theirs = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        num_frame_per_block=3,
    ).eval()
    theirs.load_state_dict({diffusers_name(k): v for k, v in ours.state_dict().items()}, strict=True)
    x, text = video(6, 6), prompts()
    t = (
        torch.tensor([[900.0] * 3 + [400.0] * 3, [30.0] * 6])
        if per_frame
        else torch.tensor([[750.0] * 6] * 2)
    )
    with torch.no_grad():
        flow = ours(x, t, text, ContextRule(3, None, 0))
        expected = theirs(
            x.transpose(1, 2),
            t if per_frame else t[:, 0],
            text,
            enable_diffusion_forcing=per_frame,
            return_dict=False,
        )[0]
    torch.testing.assert_close(flow, expected.transpose(1, 2), atol=1e-4, rtol=1e-4)


def released_shapes(dim: int, ffn: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Parameters of the released text-to-video checkpoints, from their description."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.head.weight": (64, dim),
        "head.head.bias": (64,),
        "head.modulation": (1, 2, dim),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    linear("text_embedding.0", dim, 4096)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, 256)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    for i in range(layers):
        for attention in ("self_attn", "cross_attn"):
            for projection in "qkvo":
                linear(f"blocks.{i}.{attention}.{projection}", dim, dim)
            shapes[f"blocks.{i}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"blocks.{i}.{attention}.norm_k.weight"] = (dim,)
        linear(f"blocks.{i}.ffn.0", ffn, dim)
        linear(f"blocks.{i}.ffn.2", dim, ffn)
        shapes[f"blocks.{i}.norm3.weight"] = shapes[f"blocks.{i}.norm3.bias"] = (dim,)
        shapes[f"blocks.{i}.modulation"] = (1, 6, dim)
    return shapes


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(WAN_1_3B, released_shapes(1536, 8960, 30)), (WAN_14B, released_shapes(5120, 13824, 40))],
    ids=["1.3B", "14B"],
)
def test_full_size_models_have_the_names_and_shapes_of_the_released_checkpoints(
    architecture: WanArchitecture, expected: dict[str, tuple[int, ...]]
) -> None:
    """Strict loading of a real checkpoint would fail on the cluster, hours later."""
    with torch.device("meta"):
        model = CausalWanModel(architecture)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """Recomputing a block must see the same frames and text as the first time."""
    model, x, clean, text = random_model(4), video(7, 6), video(8, 6), prompts()
    t, rule = torch.full((2, 6), 500.0), ContextRule(3, 4, 1, "relative")
    gradients = []
    for model.gradient_checkpointing, model.keep_attention in ((False, False), (True, False), (True, True)):
        model.zero_grad()
        model(x, t, text, rule, clean).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


class AttentionCalls(TorchDispatchMode):
    """Counts forward passes of attention."""

    num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.num += "scaled_dot_product" in name and "backward" not in name
        return func(*args, **(kwargs or {}))


def test_kept_attention_is_not_computed_again_in_the_backward_pass() -> None:
    """The most expensive part would run twice although its result is kept."""
    model, x, text = random_model(4), video(7, 6), prompts()
    model.gradient_checkpointing, counts = True, []
    for model.keep_attention in (False, True):
        with AttentionCalls() as calls:
            loss = model(x, torch.full((2, 6), 500.0), text, ContextRule(3, 4, 1)).square().mean()
            forward = calls.num
            loss.backward()
        counts.append((forward, calls.num - forward))
    per_pass = counts[0][0]
    assert per_pass >= 2 * 2  # two blocks, two chunks
    assert counts == [(per_pass, per_pass), (per_pass, 0)]


def test_kept_attention_serves_a_repetition_that_makes_other_calls() -> None:
    """Under ZeRO 3 weights are gathered for other layers when a block is computed again: no step ended."""
    model, x, text = random_model(4), video(7, 6), prompts()
    model.gradient_checkpointing = model.keep_attention = True
    is_repetition = False

    def gather(module: torch.nn.Module, args: object) -> None:
        if is_repetition:
            torch.arange(3.0).cumsum(0)

    model.blocks[0].ffn.register_forward_pre_hook(gather)
    loss = model(x, torch.full((2, 6), 500.0), text, ContextRule(3, 4, 1)).square().mean()
    is_repetition = True
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_rotations_made_while_sampling_serve_training() -> None:
    """A cached inference tensor raises in the first backward pass after a rollout in the same process."""
    frame_rotations.cache_clear()
    model, x, text = random_model(5), video(9, 3), prompts()
    with torch.inference_mode():
        model(x, torch.full((2, 3), 500.0), text, ContextRule(3, None, 0))
    model(x, torch.full((2, 3), 500.0), text, ContextRule(3, None, 0)).sum().backward()


def test_temporal_positions_beyond_the_thousandth_frame_stay_exact() -> None:
    """Long interactive videos pass every table; angles in float32 would be off by then."""
    first = 5000
    rotations = frame_rotations(12, first, 1, (1, 1), torch.device("cpu"))[0, 0]
    angle = torch.tensor(first * 10000.0 ** (-1 / 2), dtype=torch.float64)
    assert rotations[1].real.item() == pytest.approx(torch.cos(angle).item(), abs=1e-6)
