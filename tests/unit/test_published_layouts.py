"""Every published layout of model files, written small, through the code that loads the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from actors.rollout_actor import RolloutActor, RolloutActorSpec
from astrolabe_ray.config.base_models import TEXT_ENCODER_FILE, TOKENIZER_DIR
from astrolabe_ray.config.schema import LoraConfig, ModelConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import anywhere, resolve
from astrolabe_ray.models.lora import block_linears
from astrolabe_ray.models.original_text_encoder import read_original_text_encoder
from astrolabe_ray.models.original_vae import LATENTS_MEAN, LATENTS_STD, renamed
from astrolabe_ray.models.registry import load_transformer, mapped_transformer
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.names import bare_name, from_diffusers, to_diffusers
from astrolabe_ray.types import FrameSpec, PolicyVersion, RolloutRequest
from astrolabe_ray.weights.pack import pack
from tests.published_layouts import (
    diffusers_transformer,
    loaded,
    original_text_encoder_shapes,
    original_vae_shapes,
    random_tensors,
    transformer_shapes,
    transformer_tensors,
    wrapped,
    write_original_base,
)
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_base(tmp_path_factory.mktemp("wan") / "Wan2.1-tiny")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


LAYOUTS: dict[str, tuple[str, str | None, Callable[[dict[str, Tensor], dict[str, Tensor]], object]]] = {
    "self forcing": (
        "a.pt",
        "generator_ema",
        lambda good, other: {
            "generator": wrapped(other, "model."),
            "critic": wrapped(other, "model."),
            "generator_ema": wrapped(good, "model._fsdp_wrapped_module."),
        },
    ),
    "causal forcing": (
        "a.pt",
        "generator",
        lambda good, other: {
            "generator": wrapped(good, "model."),
            "generator_ema": wrapped(other, "model."),
            "step": 7,
        },
    ),
    "longlive": ("a.pt", "generator", lambda good, other: {"generator": wrapped(good, "model.")}),
    "only one set": ("a.pth", None, lambda good, other: {"model": wrapped(good, "_orig_mod.")}),
    "state dict": ("a.bin", None, lambda good, other: {"state_dict": wrapped(good, "diffusion_model.")}),
    "bare": ("a.pt", None, lambda good, other: good),
    "krea": ("a.safetensors", None, lambda good, other: wrapped(good, "model.")),
    "comfy": ("a.safetensors", None, lambda good, other: wrapped(good, "model.diffusion_model.")),
    "diffusers names": (
        "a.safetensors",
        None,
        lambda good, other: {to_diffusers(n): t for n, t in good.items()},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_every_layout_gives_the_same_transformer(
    base: Path, tmp_path: Path, layout: str
) -> None:
    """The wrong one of several sets, or a prefix left on, would train another model."""
    name, key, contents = LAYOUTS[layout]
    good, path = transformer_tensors(1), tmp_path / name
    written = contents(good, transformer_tensors(2))
    (save_file if name.endswith("safetensors") else torch.save)(written, path)  # type: ignore[operator]
    assert_same(loaded(base, path, key), good)


def test_a_checkpoint_in_the_old_format_of_torch_loads(base: Path, tmp_path: Path) -> None:
    """Files from before the zip format can't be memory-mapped."""
    good = transformer_tensors(1)
    torch.save(good, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(loaded(base, tmp_path / "a.pt"), good)


def test_shards_are_joined_in_a_base_directory_and_by_their_index(base: Path, tmp_path: Path) -> None:
    """The 14B base comes in several files."""
    good = transformer_tensors(1)
    root = write_original_base(tmp_path / "sharded")
    names = sorted(good)
    parts = {f"diffusion_pytorch_model-{i}.safetensors": names[i::3] for i in range(3)}
    for file, held in parts.items():
        save_file({name: good[name] for name in held}, root / file)
    index = root / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f for f, held in parts.items() for name in held}}))
    assert_same(dict(load_transformer(resolve(str(root)), torch.float32, "cpu").state_dict()), good)
    assert_same(loaded(base, index), good)
    (root / "diffusion_pytorch_model-1.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks .*diffusion_pytorch_model-1\.safetensors"):
        resolve(str(root))


def test_the_weights_of_a_file_are_mapped_and_not_copied(base: Path, tmp_path: Path) -> None:
    """A second copy of a 14B model does not fit the memory of a host with four ranks."""
    torch.save({"generator": transformer_tensors(1)}, tmp_path / "a.pt")
    files = resolve(str(base), checkpoint=str(tmp_path / "a.pt"), checkpoint_key="generator")
    model = mapped_transformer(files)
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    of_file = [m[0].split("-") for m in mappings if m[-1] == str(tmp_path / "a.pt")]
    ranges = [(int(start, 16), int(end, 16)) for start, end in of_file]
    assert ranges
    assert all(any(a <= p.data_ptr() < b for a, b in ranges) for p in model.parameters())


def test_names_map_to_diffusers_and_back() -> None:
    """Two names that meet in one, or a swapped norm, would load the wrong tensor without a word."""
    ours = set(transformer_shapes())
    theirs = {to_diffusers(name) for name in ours}
    assert theirs == set(diffusers_transformer().state_dict())
    assert {from_diffusers(name) for name in theirs} == ours
    assert to_diffusers("blocks.1.norm3.weight") == "blocks.1.norm2.weight"
    assert to_diffusers("blocks.0.self_attn.o.lora_A") == "blocks.0.attn1.to_out.0.lora_A"
    assert bare_name("model._fsdp_wrapped_module.blocks.0._checkpoint_wrapped_module.ffn.0.bias") == (
        "blocks.0.ffn.0.bias"
    )


def test_a_diffusers_directory_gives_the_output_of_diffusers_own_model(tmp_path: Path) -> None:
    """Swapped projections or norms of equal shape pass every check of names."""
    root = write_tiny_model(tmp_path / "pipeline")
    theirs = diffusers_transformer()
    for file in (root / "transformer").iterdir():
        file.unlink()
    theirs.save_pretrained(root / "transformer")
    ours = load_transformer(resolve(str(root)), torch.float32, "cpu")
    generator = torch.Generator().manual_seed(5)
    x, text = torch.randn(2, 3, 16, 4, 6, generator=generator), torch.randn(2, 5, 12, generator=generator)
    with torch.no_grad():
        flow = ours(x, torch.full((2, 3), 750.0), text, ContextRule(3, None, 0))
        expected = theirs(
            x.transpose(1, 2), torch.full((2,), 750.0), F.pad(text, (0, 0, 0, 507)), return_dict=False
        )[0]
    torch.testing.assert_close(flow, expected.transpose(1, 2), atol=1e-3, rtol=1e-3)


def test_the_original_vae_is_read_as_diffusers_own_converter_reads_it(base: Path, tmp_path: Path) -> None:
    """A level off by one gives pictures that are almost right."""
    tensors = random_tensors(original_vae_shapes(), 2)
    ours, theirs = renamed(tensors), convert_wan_vae_to_diffusers(dict(tensors))
    assert_same(ours, theirs)
    vae = VideoVAE.load(base / "Wan2.1_VAE.pth", "cpu", torch.float32)
    assert vae.decode(torch.zeros(1, 2, 16, 2, 2)).shape == (1, 5, 3, 16, 16)


def test_the_latent_statistics_are_those_of_the_published_vae() -> None:
    """The original file does not hold them; a digit off shifts a channel of every latent."""
    with torch.device("meta"):
        config = AutoencoderKLWan(base_dim=4).config
    assert list(LATENTS_MEAN) == config.latents_mean
    assert list(LATENTS_STD) == config.latents_std


def plain_umt5(w: dict[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """The original encoder written out, for one prompt without padding and under eight tokens."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    x = w["token_embedding.weight"][ids]
    positions = torch.arange(len(ids))
    distance = positions[None, :] - positions[:, None]
    bucket = distance.abs() + 16 * (distance > 0)  # exact below 8, the other half for keys that follow
    for i in range(len({name.split(".")[1] for name in w if name.startswith("blocks.")})):
        b = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        y = norm(x, b["norm1.weight"])
        q, k, v = (
            (y @ b[f"attn.{part}.weight"].T).unflatten(-1, (heads, -1)).transpose(0, 1) for part in "qkv"
        )
        bias = b["pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        y = ((q @ k.transpose(1, 2) + bias).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + y @ b["attn.o.weight"].T
        y = norm(x, b["norm2.weight"])
        gate = F.gelu(y @ b["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ b["ffn.fc1.weight"].T)) @ b["ffn.fc2.weight"].T
    return norm(x, w["norm.weight"])


def test_the_original_text_encoder_gives_the_embeddings_of_its_description(base: Path) -> None:
    """A scaled attention, a shared position bias or a swapped gate changes every prompt a little."""
    encoder = TextEncoder.load(base / TEXT_ENCODER_FILE, base / TOKENIZER_DIR, 5, "cpu", torch.float32)
    found = encoder.encode(["a red circle"])[0]
    expected = plain_umt5(random_tensors(original_text_encoder_shapes(), 3), torch.tensor([2, 3, 5]), heads=2)
    torch.testing.assert_close(found[:3], expected, atol=1e-5, rtol=1e-4)
    assert not found[3:].any()


def test_the_embedding_of_the_original_text_encoder_is_held_once(base: Path) -> None:
    """Under its two names it would take 2 GB twice."""
    network = read_original_text_encoder(base / TEXT_ENCODER_FILE)
    assert network.shared.weight is network.encoder.embed_tokens.weight


def test_paths_mean_the_same_in_a_process_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of a cluster does not start where the command was typed."""
    monkeypatch.chdir(tmp_path)
    model = anywhere(ModelConfig(path="wan", checkpoint="a.pt"))
    assert (model.path, model.checkpoint) == (str(tmp_path / "wan"), str(tmp_path / "a.pt"))
    assert anywhere(ModelConfig()) == ModelConfig()  # the embedded model has no place of its own


def test_a_rollout_actor_samples_with_the_parts_of_an_original_directory(base: Path, tmp_path: Path) -> None:
    """Parts that load one by one may still not fit each other."""
    torch.save({"generator": wrapped(transformer_tensors(1), "model.")}, tmp_path / "a.pt")
    model = ModelConfig(
        path=str(base),
        checkpoint=str(tmp_path / "a.pt"),
        checkpoint_key="generator",
        num_latent_frames=2,
        height=32,
        width=16,
        chunk_frames=1,
        denoising_steps=(1000, 500),
    )
    actor = RolloutActor(RolloutActorSpec(model, LoraConfig(rank=2, alpha=2), "cpu", None), "actor")
    actor.setup()
    zeros = {
        f"{name}.lora_{factor}": torch.zeros(shape)
        for name, linear in block_linears(actor._model).items()
        for factor, shape in (("A", (2, linear.in_features)), ("B", (linear.out_features, 2)))
    }
    actor.load_policy(*pack(zeros, version=PolicyVersion(), lora_scale=1.0))
    request = RolloutRequest("g", "a red circle", (3, 4), (0, 1), (FrameSpec(),))
    records, frames, latents, *_ = actor.generate(request)
    assert (len(records), frames.shape, latents.shape) == (2, (5, 3, 32, 16), (2, 16, 4, 2))
