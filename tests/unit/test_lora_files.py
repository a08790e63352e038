"""LoRA files in and out: PEFT old and new, LongLive's file, diffusers."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import PeftModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import ConfigError, WeightMismatch
from astrolabe_ray.models.files import find_lora
from astrolabe_ray.models.lora import (
    MergedLinears,
    adapter_tensors,
    add_adapters,
    block_linears,
    merge_for_good,
)
from astrolabe_ray.models.lora_files import Lora, read_lora, require_lora_fits, write_lora
from astrolabe_ray.models.rounding import rounded_by_chance
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.names import to_diffusers
from astrolabe_ray.models.wan.transformer import CausalWanModel
from tests.random_wan import ARCHITECTURE, prompts, random_model, video

# What the class LoraConfig of PEFT 0.10 takes: every other key makes it raise TypeError.
KEYS_OF_PEFT_0_10 = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "use_dora", "layer_replication"),
}


def random_lora(rank: int = 3, alpha: float = 6.0) -> Lora:
    generator = torch.Generator().manual_seed(11)
    tensors: dict[str, Tensor] = {}
    for name, linear in block_linears(random_model()).items():
        tensors[f"{name}.lora_A"] = torch.randn(rank, linear.in_features, generator=generator)
        tensors[f"{name}.lora_B"] = 0.1 * torch.randn(linear.out_features, rank, generator=generator)
    return Lora(tensors, rank, alpha)


def flow_of(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(video(2, 3), torch.full((2, 3), 700.0), prompts(), ContextRule(3, None, 0))


def merged(lora: Lora) -> CausalWanModel:
    model = random_model()
    for name, linear in block_linears(model).items():  # written out, to judge MergedLinears and PEFT alike
        delta = lora.alpha / lora.rank * lora.tensors[f"{name}.lora_B"] @ lora.tensors[f"{name}.lora_A"]
        linear.weight.data += delta
    return model


def peft_names(lora: Lora) -> dict[str, Tensor]:
    return {f"base_model.model.{name}.weight": tensor for name, tensor in lora.tensors.items()}


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def assert_same(found: Lora, expected: Lora) -> None:
    assert (found.rank, found.alpha) == (expected.rank, expected.alpha)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


@pytest.mark.parametrize("form", ["peft", "seed"])
def test_peft_loads_what_is_written_and_so_do_we(tmp_path: Path, form) -> None:
    """An adapter that only we can read is lost to everyone else."""
    lora = random_lora()
    write_lora(lora, folder(tmp_path / "lora"), form)
    expected = flow_of(merged(lora))
    model = PeftModel.from_pretrained(random_model(), str(tmp_path / "lora"))  # type: ignore[arg-type]
    torch.testing.assert_close(flow_of(model), expected, atol=1e-4, rtol=1e-4)
    (file,) = (tmp_path / "lora").glob("adapter_model.*")
    for named in (tmp_path / "lora", tmp_path, file):
        assert_same(read_lora(named), lora)


@pytest.mark.parametrize("form", ["peft", "seed"])
def test_the_settings_hold_nothing_that_peft_0_10_does_not_know(tmp_path: Path, form) -> None:
    """It raises TypeError for one unknown key."""
    write_lora(random_lora(), tmp_path, form)
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())) == KEYS_OF_PEFT_0_10


def test_the_pickle_has_the_order_of_the_model(tmp_path: Path) -> None:
    """As text block 10 comes before block 2, and AdamW's numbered state would belong to other tensors."""
    model = CausalWanModel(replace(ARCHITECTURE, num_layers=11))
    own = list(adapter_tensors(add_adapters(model, LoraConfig(rank=2, alpha=2), ["default"]), "default"))
    tensors = {name: torch.zeros(2, 2) for name in sorted(own)}
    assert list(tensors) != own
    write_lora(Lora(tensors, 2, 2.0), folder(tmp_path / "seed"), "seed")
    written = torch.load(tmp_path / "seed" / "adapter_model.bin", weights_only=True)
    assert list(written) == [f"base_model.model.{name}.weight" for name in own]


def test_an_adapter_that_peft_itself_saved_is_read(tmp_path: Path) -> None:
    """Users bring adapters of the newest PEFT, with settings that we never write."""
    lora = random_lora()
    write_lora(lora, folder(tmp_path / "lora"))
    model = PeftModel.from_pretrained(random_model(), str(tmp_path / "lora"))  # type: ignore[arg-type]
    model.save_pretrained(str(tmp_path / "saved"))
    assert_same(read_lora(tmp_path / "saved"), lora)


@pytest.mark.parametrize("layout", ["generator_lora", "bare", "wrapped"])
def test_the_file_of_longlive_is_read_with_alpha_equal_to_rank(tmp_path: Path, layout: str) -> None:
    """The critic's LoRA lies beside the generator's and has the same names."""
    lora = random_lora(alpha=3.0)
    named = peft_names(lora)
    critic = {name: torch.zeros_like(tensor) for name, tensor in named.items()}
    contents = {
        "generator_lora": {"critic_lora": critic, "generator_lora": named},
        "bare": named,
        "wrapped": {
            n.replace("blocks.", "_fsdp_wrapped_module.blocks.").replace(".weight", ".default.weight"): t
            for n, t in named.items()
        },
    }[layout]
    torch.save(contents, tmp_path / "lora.pt")
    assert_same(read_lora(tmp_path / "lora.pt"), lora)


def test_a_bfloat16_adapter_becomes_float32(tmp_path: Path) -> None:
    """Trained on in bfloat16, most of its numbers never move."""
    lora = random_lora()
    write_lora(Lora({n: t.bfloat16() for n, t in lora.tensors.items()}, 3, 6.0), tmp_path, "seed")
    assert {tensor.dtype for tensor in read_lora(tmp_path).tensors.values()} == {torch.float32}


def test_diffusers_gives_our_output_with_the_exported_adapter(tmp_path: Path) -> None:
    """Wrong names or a forgotten scale: the pipeline would run and look like the base model."""
    lora = random_lora()
    write_lora(lora, tmp_path, "diffusers")
    base, a = random_model(), ARCHITECTURE
    theirs = WanTransformer3DModel(
        num_attention_heads=a.num_heads,
        attention_head_dim=a.head_dim,
        in_channels=4,
        out_channels=4,
        text_dim=a.text_dim,
        freq_dim=a.freq_dim,
        ffn_dim=a.ffn_dim,
        num_layers=a.num_layers,
    ).eval()
    theirs.load_state_dict({to_diffusers(name): t for name, t in base.state_dict().items()})
    state = WanLoraLoaderMixin.lora_state_dict(str(tmp_path), local_files_only=True)
    WanLoraLoaderMixin.load_lora_into_transformer(state, transformer=theirs)
    with torch.no_grad():
        text = F.pad(prompts(), (0, 0, 0, 512 - 5))
        expected = theirs(video(2, 3).transpose(1, 2), torch.full((2,), 700.0), text, return_dict=False)[0]
    ours = CausalWanModel(replace(a, text_len=512)).eval()
    ours.load_state_dict(merged(lora).state_dict())
    torch.testing.assert_close(flow_of(ours), expected.transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_the_folder_that_is_written_for_diffusers_is_read(tmp_path: Path) -> None:
    """What was exported could be loaded by others only, or by the name of the file in it."""
    lora = random_lora()
    write_lora(lora, folder(tmp_path / "lora"), "diffusers")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert find_lora(tmp_path / "lora") == find_lora(tmp_path) == find_lora(file) == file
    found = read_lora(tmp_path / "lora")
    torch.testing.assert_close(flow_of(merged(found)), flow_of(merged(lora)), atol=1e-5, rtol=1e-5)
    write_lora(lora, tmp_path / "lora")
    assert_same(read_lora(tmp_path / "lora"), lora)  # PEFT's files say alpha


def test_merging_gives_the_adapters_output_and_unmerging_the_base_bitwise() -> None:
    """Taking a product off again leaves rounding behind, a little more each time."""
    model, lora = random_model(), random_lora()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears = MergedLinears(model, lora.scale)
    for _ in range(2):
        linears.load(lora.tensors)
    torch.testing.assert_close(flow_of(model), flow_of(merged(lora)), atol=1e-4, rtol=1e-4)
    linears.unload()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_young_adapter_survives_in_bfloat16_weights() -> None:
    """Most of it vanishes when base + adapter is rounded to the nearest weight: sampling would stay with
    the base for tens of steps, while the learner holds the adapter for what sampled.

    Along its own direction the merged change must be the adapter; a second load gives the same bits.
    """
    model, lora = random_model().to(torch.bfloat16), random_lora()
    young = {n: t * (3e-4 if n.endswith("lora_B") else 1) for n, t in lora.tensors.items()}
    base = {name: linear.weight.double().clone() for name, linear in block_linears(model).items()}
    linears = MergedLinears(model, lora.scale)
    linears.load(young)
    first = {name: linear.weight.clone() for name, linear in block_linears(model).items()}
    along, size, nearest = 0.0, 0.0, 0.0
    for name, linear in block_linears(model).items():
        change = lora.scale * young[f"{name}.lora_B"].double() @ young[f"{name}.lora_A"].double()
        along += ((linear.weight.double() - base[name]) * change).sum().item()
        nearest += (((base[name] + change).to(torch.bfloat16).double() - base[name]) * change).sum().item()
        size += change.square().sum().item()
    assert nearest < 0.3 * size
    assert along == pytest.approx(size, rel=0.15)
    linears.load(young)
    assert all(torch.equal(linear.weight, first[name]) for name, linear in block_linears(model).items())


def test_rounding_by_chance_hits_both_neighbours_as_often_as_it_should() -> None:
    """A bias, or numbers that bfloat16 holds and that move all the same.

    Between 1 and its bfloat16 neighbour 1 + 1/128, a quarter of the way is rounded up a quarter of the time.
    """
    quarter = torch.full((100_000,), 1 + 0.25 / 128)
    for sign in (1, -1):
        rounded = rounded_by_chance(sign * quarter, "layer").float()
        assert set(rounded.tolist()) == {sign * 1.0, sign * (1 + 1 / 128)}
        assert (rounded.abs() > 1).double().mean().item() == pytest.approx(0.25, abs=0.01)
    exact = torch.tensor([0.0, -1.5, 3e-5, 2.0**-100]).to(torch.bfloat16)
    assert torch.equal(rounded_by_chance(exact.float(), "layer"), exact)


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at once, but for those that `besides` holds."""

    def __init__(self, besides: torch.nn.Module) -> None:
        super().__init__()
        self._known = {tensor.data_ptr() for tensor in besides.state_dict().values()}
        self._made: list[weakref.ref[Tensor]] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.data_ptr() not in self._known:
            self._made.append(weakref.ref(result))
        alive = [tensor for reference in self._made if (tensor := reference()) is not None]
        self.peak = max(self.peak, sum(tensor.untyped_storage().nbytes() for tensor in alive))
        return result


def test_merging_for_good_needs_room_for_one_linear() -> None:
    """A copy of all of them is 26 GB at 14B, for `generate` with a LoRA, which never takes it off again."""
    model, lora = random_model(), random_lora()
    with LiveBytes(model) as live:
        merge_for_good(model, lora.tensors, lora.scale)
    torch.testing.assert_close(flow_of(model), flow_of(merged(lora)), atol=1e-4, rtol=1e-4)
    sizes = [4 * linear.weight.numel() for linear in block_linears(model).values()]
    assert 0 < live.peak < 4 * max(sizes) < sum(sizes) / 2


def test_a_merge_that_does_not_fit_writes_nothing() -> None:
    """Half a LoRA would make videos of no model at all."""
    model, lora = random_model(), random_lora()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last = list(lora.tensors)[-1]
    with pytest.raises(WeightMismatch, match="differ in 1 tensors"):
        merge_for_good(model, {n: t for n, t in lora.tensors.items() if n != last}, lora.scale)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def without(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            lambda t: without(t, "0.ffn.2.lora_B"),
            r"not fit the model\. missing: blocks\.0\.ffn\.2\.lora_B",
        ),
        (lambda t: t | {"blocks.7.ffn.0.lora_A.weight": torch.ones(3, 24)}, r"unexpected: blocks\.7\.ffn\.0"),
        (
            lambda t: t | {"base_model.model.blocks.0.ffn.0.lora_B.weight": torch.ones(5, 3)},
            r"misshapen: blocks\.0\.ffn\.0\.lora_B is \(5, 3\), should be \(32, 3\)",
        ),
        (lambda t: t | {"blocks.0.ffn.0.lora_A.weight": torch.ones(4, 24)}, r"ranks \[3, 4\]; one rank"),
        (lambda t: {"patch_embedding.weight": torch.ones(3)}, "no LoRA that can be read: it holds patch_emb"),
        (lambda t: {"decoder.conv1.weight": torch.ones(3)}, r"lora\.pt is a VAE"),
        (lambda t: t | {"blocks.0.ffn.0.alpha": torch.ones(())}, r"it holds blocks\.0\.ffn\.0\.alpha"),
        (lambda t: {}, "is an empty LoRA"),
    ],
)
def test_a_lora_that_does_not_fit_says_where(tmp_path: Path, contents, message: str) -> None:
    """A part that is not loaded changes the picture a little and is noticed never."""
    torch.save(contents(peft_names(random_lora())), tmp_path / "lora.pt")
    with pytest.raises(ConfigError, match=message):
        require_lora_fits(read_lora(tmp_path / "lora.pt"), random_model(), tmp_path / "lora.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "uses use_dora; only plain LoRA"),
        ({"bias": "all"}, "uses bias; only plain LoRA"),
        ({"r": 4}, r"has rank 3, its adapter_config\.json says 4"),
        ({"r": None}, "tells no rank and alpha"),
    ],
)
def test_settings_that_the_weights_do_not_have_are_refused(tmp_path: Path, change, message: str) -> None:
    """The scale of every layer comes from these settings."""
    write_lora(random_lora(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        read_lora(tmp_path)


def test_a_folder_without_an_adapter_says_what_belongs_there(tmp_path: Path) -> None:
    """A run's folder in place of its checkpoint's."""
    words = (
        r"there is no LoRA in .*adapter_config\.json or pytorch_lora_weights\.safetensors, itself or in lora/"
    )
    with pytest.raises(ConfigError, match=words):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"but no adapter_model\.safetensors or adapter_model\.bin"):
        read_lora(tmp_path)
