"""What a run needs of memory, compared with the model itself and with numbers computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.memory import (
    DECODER_KEPT,
    GB,
    attention_bytes_per_token,
    block_bytes_per_token,
    block_linear_params,
    kv_cache_bytes,
    learner_rank,
    lora_params,
    memory_by_role,
    rollout_actor,
    sizes_by_name,
    train_frames,
    transformer_params,
)
from astrolabe_ray.config.schema import LoraConfig, RunConfig
from astrolabe_ray.models.lora import add_adapters, block_linears
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B, WanArchitecture
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import KVCache
from astrolabe_ray.models.wan.transformer import CausalWanModel

ROOT = Path(__file__).parents[2]
MODEL_SIZES = sizes_by_name()
SPRITES = MODEL_SIZES["tiny_sprites"].transformer
WEIGHTS = ROOT / "astrolabe_ray" / "data" / "sprites" / "weights"


def preset(name: str, *overrides: str) -> RunConfig:
    return load(f"{ROOT / 'configs'}/nft_{name.split('_')[0]}.py:{name}", overrides)


@pytest.mark.parametrize("architecture", [WAN_1_3B, WAN_14B, SPRITES], ids=["1.3B", "14B", "sprites"])
def test_parameters_are_those_of_the_model(architecture: WanArchitecture) -> None:
    """A layer left out of the sum makes a run that does not fit look as if it did."""
    with torch.device("meta"):
        model = CausalWanModel(architecture)
    linears = block_linears(model).values()
    assert transformer_params(architecture) == sum(p.numel() for p in model.parameters())
    assert block_linear_params(architecture) == sum(p.numel() for m in linears for p in m.parameters())
    by_layer = sum(16 * (m.in_features + m.out_features) for m in linears)
    assert lora_params(architecture, 16) == by_layer


def test_adapters_of_rank_256_have_the_published_sizes() -> None:
    """300 and 400 linear layers; a layer without an adapter would be missed by both sums above."""
    assert lora_params(WAN_1_3B, 256) == 349_962_240
    assert lora_params(WAN_14B, 256) == 1_226_833_920


def test_text_encoder_and_vae_are_those_of_the_libraries() -> None:
    """The text encoder is four times as large as the 1.3B model: a slip there hides everything else."""
    with torch.device("meta"):
        text = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
        vae = AutoencoderKLWan()
    full = MODEL_SIZES["longlive"]
    assert full.text_encoder == sum(p.numel() for p in text.parameters())
    assert full.vae == sum(p.numel() for p in vae.parameters())


@pytest.mark.parametrize(("part", "expected"), [("text_encoder", "text_encoder"), ("vae", "vae")])
def test_the_embedded_parts_are_those_of_their_files(part: str, expected: str) -> None:
    """New weights of another size would leave the table behind."""
    (file,) = (WEIGHTS / part).glob("*.safetensors")
    with safe_open(file, "pt") as tensors:
        found = sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118
    assert found == getattr(MODEL_SIZES["tiny_sprites"], expected)


@pytest.mark.parametrize("name", sorted(BASE_MODELS))
def test_the_kv_cache_is_as_large_as_the_one_that_is_allocated(name: str) -> None:
    """The largest part of a long rollout; a window that is forgotten doubles it."""
    m, a = BASE_MODELS[name].model_config(), MODEL_SIZES[name].transformer
    cache = KVCache(
        a,
        ContextRule(m.chunk_frames, m.window_frames, m.sink_frames, m.rope),
        batch=3,
        num_frames=m.num_latent_frames,
        grid=a.grid(m.height // 8, m.width // 8),
        dtype=getattr(torch, m.dtype),
        device=torch.device("meta"),
    )
    assert kv_cache_bytes(m, a, 3, m.num_latent_frames) == cache.num_bytes


def test_kv_caches_have_the_sizes_computed_by_hand() -> None:
    """184,320 and 819,200 bytes a token, 1,560 tokens a latent frame."""
    found = {
        name: kv_cache_bytes(BASE_MODELS[name].model_config(), MODEL_SIZES[name].transformer, 1, 21)
        for name in ("self_forcing", "longlive", "krea14b")
    }
    assert found == {
        "self_forcing": 184_320 * 1560 * 21,
        "longlive": 184_320 * 1560 * 12,
        "krea14b": 819_200 * 1560 * 21,
    }


def test_a_rollout_actor_holds_what_a_hand_count_says() -> None:
    """Sampling keeps the base of the merged layers beside the merged ones."""
    parts = rollout_actor(preset("longlive_video_hpsv3"), MODEL_SIZES["longlive"])
    assert parts["base weights"] == 2 * 1_418_996_800
    assert parts["base of the merged layers"] == 2 * 1_392_668_160
    assert parts["KV cache"] == 3 * 184_320 * 1560 * 12  # rollout.batch_size is 3
    assert parts["text keys and values"] == 184_320 * 512
    assert parts["text encoder"] == pytest.approx(11.36 * GB, rel=1e-3)


@pytest.mark.parametrize(
    ("stage", "base", "adapters", "adam", "gradients"),
    [(0, 1, 1, 8, 1), (1, 1, 1, 12 / 4, 1), (2, 1, 1, 12 / 4, 1 / 4), (3, 1 / 4, 1 / 4, 12 / 4, 1 / 4)],
)
def test_a_learner_rank_holds_its_share_at_each_zero_stage(
    stage: int, base: float, adapters: float, adam: float, gradients: float
) -> None:
    """A stage that splits nothing, or splits too much, is off by the number of ranks."""
    config = preset("longlive_video_hpsv3", f"learner.zero_stage={stage}", "learner.num_ranks=4")
    parts = learner_rank(config, MODEL_SIZES["longlive"])
    lora = 349_962_240
    assert parts["base weights"] == 2 * 1_418_996_800 * base
    assert parts["adapters"] == 4 * 2 * lora * adapters
    assert parts["Adam"] == lora * adam
    assert parts["gradients"] == 4 * lora * gradients
    assert parts["gradients under way"] == (4 * lora if stage else 0)


def test_decoding_keeps_the_features_that_the_decoder_keeps() -> None:
    """Two frames before each of 33 convolutions: 2 GB a video at full size."""
    network = AutoencoderKLWan(base_dim=8)
    stream = VideoVAE(network).stream(batch=1)
    stream.decode(torch.randn(1, 3, 16, 4, 4))
    features = [f for f in stream._features if isinstance(f, Tensor)]
    maps = sum(f.numel() for f in features) / (8 * 32 * 32)
    assert maps == pytest.approx(DECODER_KEPT, rel=0.03)


def test_training_keeps_one_map_a_block_for_noisy_and_clean_frames() -> None:
    """21 noisy frames and the 18 clean ones before the last chunk, 1,560 tokens of 1,536 numbers each."""
    config = preset("longlive_video_hpsv3", "learner.keep_attention=false")
    assert train_frames(config) == 39
    parts = learner_rank(config, MODEL_SIZES["longlive"])
    assert parts["kept activations"] == 30 * 39 * 1560 * 1536 * 2
    noisy = preset("longlive_video_hpsv3", "algorithm.clean_context=false")
    assert train_frames(noisy) == 21


@pytest.fixture
def linear_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ZeRO 3 engine of an earlier test leaves a linear of its own in this process."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)


def saved_bytes(architecture: WanArchitecture, dtype: torch.dtype) -> int:
    """What autograd saves in a training forward of 21 frames of 16 tokens, weights not counted."""
    model = CausalWanModel(architecture).to(dtype).requires_grad_(False)
    wrapped = add_adapters(model, LoraConfig(rank=2, alpha=2))
    weights = {p.untyped_storage().data_ptr() for p in wrapped.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(1, 21, 16, 8, 8)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = wrapped(x, torch.full((1, 21), 500.0), torch.randn(1, 16, 64), ContextRule(3, 12, 3), x, 0.0)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.usefixtures("linear_of_torch")
@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
@pytest.mark.parametrize("ffn_dim", [384, 1152])
def test_a_block_keeps_what_autograd_saves_for_it(dtype: torch.dtype, width: int, ffn_dim: int) -> None:
    """The largest part of a learner rank: float32 copies that adapters make are easily forgotten."""
    one, two = (WanArchitecture(192, 3, layers, ffn_dim, 64, 64, 16) for layers in (1, 2))
    per_token = (saved_bytes(two, dtype) - saved_bytes(one, dtype)) / (39 * 16)
    assert block_bytes_per_token(one, width) == pytest.approx(per_token, rel=0.03)


def test_training_on_a_window_keeps_what_a_short_video_keeps_and_the_context_of_a_window() -> None:
    """A 1.3B model at 240 latent frames would not fit any card; 21 of them and a full cache of 12 do."""
    sizes, name = MODEL_SIZES["longlive"], "longlive_video_hpsv3_streaming_with_lora_init"
    parts = learner_rank(preset(name), sizes)
    whole = learner_rank(preset("longlive_video_hpsv3_with_lora_init"), sizes)
    policies = 3  # trained, behaviour and reference policy keep the history of the group, of one video
    assert parts == whole | {"KV of earlier frames": policies * 184_320 * 1560 * 12}
    alone = learner_rank(preset(name, "rollout.group_sampling=sequence"), sizes)
    assert alone["KV of earlier frames"] == 184_320 * 1560 * 12
    three_and_their_prefix = 4
    assert rollout_actor(preset(name), sizes)["KV cache"] == three_and_their_prefix * 184_320 * 1560 * 12
    attached = learner_rank(preset(name, "algorithm.detach_context=false"), sizes)
    assert attached["kept activations"] == pytest.approx(whole["kept activations"] * (39 + 21) / 39)
    assert "KV of earlier frames" not in attached
    early = learner_rank(preset(name, "algorithm.window_start=3"), sizes)
    assert early["KV of earlier frames"] == policies * 184_320 * 1560 * 3


def test_selective_kl_keeps_a_third_adapter() -> None:
    """Its reference policy moves, so it is not the bare base either."""
    sizes = MODEL_SIZES["longlive"]
    plain, lagging = (
        learner_rank(preset(f"longlive_video_hpsv3{suffix}"), sizes) for suffix in ("", "_gardo")
    )
    assert lagging["adapters"] == 1.5 * plain["adapters"]


def test_a_start_from_a_lora_keeps_a_third_adapter() -> None:
    """Its reference policy is not the bare base."""
    sizes = MODEL_SIZES["longlive"]
    plain, warm = (
        learner_rank(preset(f"longlive_video_hpsv3{suffix}"), sizes) for suffix in ("", "_with_lora_init")
    )
    assert warm["adapters"] == 1.5 * plain["adapters"]


def test_every_role_of_a_plan_has_its_memory() -> None:
    """A role left out would be missing from the sum of a GPU."""
    config = preset("longlive_video_multi_reward")
    assert list(memory_by_role(config)) == [
        "learner rank",
        "rollout actor",
        "reward server hpsv3",
        "reward server videoreward",
    ]


def test_every_base_model_has_sizes() -> None:
    """A dry run of a named model would say that its memory is unknown."""
    assert sizes_by_name().keys() == BASE_MODELS.keys()


def test_the_base_on_the_host_leaves_its_bytes_to_the_gpu() -> None:
    """400 linears of the 14B model, twice on each card: no card of 80 GB holds that and a KV cache."""
    here, away = (
        rollout_actor(
            preset("krea14b_video_hpsv3", f"rollout.base_on_host={on_host}"), MODEL_SIZES["krea14b"]
        )
        for on_host in ("false", "true")
    )
    linears = 40 * (8 * (5120 * 5120 + 5120) + 2 * 5120 * 13824 + 5120 + 13824)
    assert sum(here.values()) - sum(away.values()) == 2 * linears


def test_a_visiting_text_encoder_counts_beyond_what_comes_after_it() -> None:
    """It is gone before a video is decoded: both together would be counted and never be there."""
    text_encoder = 2 * 5_680_910_336
    for role in (rollout_actor, learner_rank):
        section = "rollout" if role is rollout_actor else "learner"
        here, away = (
            role(
                preset("krea14b_video_hpsv3", f"{section}.text_encoder_on_host={on_host}"),
                MODEL_SIZES["krea14b"],
            )
            for on_host in ("false", "true")
        )
        after = "activations", "decoding", "kept activations", "activations of a block"
        later = sum(here.get(name, 0) for name in after)
        assert here["text encoder"] == text_encoder
        resting = sum(here.values()) - text_encoder - later
        assert sum(away.values()) == pytest.approx(resting + max(text_encoder, later))


@pytest.mark.parametrize("name", ["krea14b_video_hpsv3", "krea14b_video_multi_reward_48gpu"])
def test_a_card_of_80_gb_holds_each_process_of_the_14b_presets(name: str) -> None:
    """The model twice, 94 GiB in a rollout actor."""
    fullest = max(sum(parts.values()) for parts in memory_by_role(preset(name)).values())
    assert fullest / 2**30 < 78


def test_one_gpu_of_80_gb_holds_a_run_of_the_1_3b_models() -> None:
    """Two text encoders on one card were more than it has."""
    for model in ("longlive", "self_forcing"):
        config = load(f"{ROOT / 'configs'}/nft_{model}.py:{model}_video_multi_reward_1gpu")
        found = memory_by_role(config)
        assert sum(sum(parts.values()) for parts in found.values()) / 2**30 < 78, model


class AttentionResults(TorchDispatchMode):
    """Bytes of what attention operators return."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(operator):
            self.num_bytes += sum(part.nbytes for part in result if isinstance(part, Tensor))
        return result


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_attention_that_is_kept_is_what_its_operators_return(dtype: torch.dtype, width: int) -> None:
    """Checkpointing that keeps two vectors a token more than was planned for ends in the first step."""
    a = WanArchitecture(192, 3, 2, 384, 64, 64, 16)
    model = CausalWanModel(a).to(dtype).requires_grad_(False)
    x = torch.randn(1, 21, 16, 8, 8)
    with AttentionResults() as results:
        model(x, torch.full((1, 21), 500.0), torch.randn(1, 16, 64), ContextRule(3, 12, 3), x, 0.0)
    assert 2 * 39 * 16 * attention_bytes_per_token(a, width) == results.num_bytes


def test_options_of_the_learner_count_in_its_memory() -> None:
    """A dry run said that a card was too small for settings that were chosen to fit it, and the reverse."""
    sizes, name, lora = MODEL_SIZES["longlive"], "longlive_video_hpsv3", 349_962_240
    plain = learner_rank(preset(name), sizes)
    away = learner_rank(preset(name, "learner.offload_optimizer=true"), sizes)
    assert away == plain | {"Adam": 0}
    kept = learner_rank(preset(name, "learner.keep_attention=true"), sizes)
    assert kept["kept activations"] == 30 * 39 * 1560 * (3 * 1536 * 2 + 2 * 4 * 12)
    small = learner_rank(preset(name, "learner.zero_stage=0", "lora.dtype=bfloat16"), sizes)
    assert [small[part] for part in ("adapters", "Adam", "gradients")] == [4 * lora, 4 * lora, 2 * lora]


def test_a_penalty_to_the_base_keeps_no_third_adapter() -> None:
    """The base without adapters is there anyway, whatever LoRA training starts from."""
    sizes, name = MODEL_SIZES["longlive"], "longlive_video_hpsv3_with_lora_init"
    start, base = (
        learner_rank(preset(name, f"algorithm.kl_reference={kind}"), sizes) for kind in ("start", "base")
    )
    assert start["adapters"] == 1.5 * base["adapters"]
    moves = learner_rank(preset("longlive_video_hpsv3_gardo", "algorithm.kl_reference=base"), sizes)
    assert moves["adapters"] == start["adapters"]


def test_policies_in_host_memory_count_where_the_rank_lives_there() -> None:
    """By hand, at age 1: three behaviour policies, EMA, and the trained one twice, for it is watched."""
    config = load(f"{ROOT / 'configs'}/nft_tiny.py:tiny_sprites", ["rollout.max_policy_age=1"])
    parts = learner_rank(config, MODEL_SIZES["tiny_sprites"])
    lora = lora_params(SPRITES, config.lora.rank)
    assert parts["policies beside the model"] == 6 * 4 * lora
    assert "policies beside the model" not in learner_rank(
        preset("longlive_video_hpsv3"), MODEL_SIZES["longlive"]
    )
