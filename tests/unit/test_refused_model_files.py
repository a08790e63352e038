"""Model files that are damaged, of another kind or not what was asked for: each says what it is."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import files_of, resolve
from astrolabe_ray.models.inspection import inspect
from astrolabe_ray.models.original_text_encoder import read_original_text_encoder
from astrolabe_ray.models.original_vae import read_original_vae
from astrolabe_ray.models.registry import load_transformer
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B
from astrolabe_ray.models.weight_files import read_pickled
from tests.published_layouts import (
    loaded,
    original_text_encoder_shapes,
    original_vae_shapes,
    random_tensors,
    transformer_tensors,
    write_original_base,
)
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_base(tmp_path_factory.mktemp("wan") / "Wan2.1-tiny")


@pytest.mark.parametrize(
    ("contents", "key", "message"),
    [
        (
            lambda t: {"generator": t, "generator_ema": t},
            None,
            r"choose with model\.checkpoint_key: generator, ",
        ),
        (
            lambda t: {"generator": t},
            "generator_ema",
            r"no weights 'generator_ema': it holds generator; use gen",
        ),
        (lambda t: t, "generator", r"one set of weights, without a name; leave model\.checkpoint_key out"),
        (
            lambda t: {"generator_lora": {}},
            None,
            r"is a LoRA, not a transformer; name it as model\.lora_init",
        ),
        (
            lambda t: {"blocks.0.self_attn.q.lora_A.weight": torch.ones(1)},
            None,
            "is a LoRA, not a transformer",
        ),
        (lambda t: random_tensors(original_vae_shapes()), None, "is a VAE, not a transformer"),
        (lambda t: random_tensors(original_text_encoder_shapes()), None, "is a text encoder, not a transf"),
        (lambda t: {"step": 3}, None, "holds step where a transformer's tensors should be"),
        (lambda t: {}, None, "holds nothing where"),
        (lambda t: [1, 2], None, "holds a list, not a dictionary"),
        (lambda t: t | {"model.head.modulation": t["head.modulation"]}, None, r"differ only in prefixes"),
        (
            lambda t: {n: v for n, v in t.items() if n != "head.modulation"},
            None,
            r"missing: head\.modulation",
        ),
        (lambda t: t | {"extra.weight": torch.ones(1)}, None, r"unexpected: extra\.weight"),
        (
            lambda t: t | {"head.modulation": torch.ones(1, 2, 3)},
            None,
            r"misshapen: head\.modulation is \(1, 2, 3\), should be \(1, 2, 24\)",
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_was_asked_for_says_what_it_is(
    base: Path, tmp_path: Path, contents, key: str | None, message: str
) -> None:
    """A guess in place of these errors trains another model than the one that was named."""
    torch.save(contents(transformer_tensors()), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=message):
        loaded(base, tmp_path / "a.pt", key)


class Harmful:
    """Stands for what a pickle could run."""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "pointer", "page"])
def test_a_damaged_file_is_named(base: Path, tmp_path: Path, suffix: str, damage: str) -> None:
    """A download that broke off ends in a page of traceback from deep inside."""
    path = tmp_path / f"a{suffix}"
    (torch.save if suffix == ".pt" else save_file)(transformer_tensors(), path)  # type: ignore[operator]
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "page": b"<html>404</html>" * 100,
        }[damage]
    )
    words = {"empty": "it is empty", "pointer": "Git LFS pointer"}.get(damage, "is damaged")
    with pytest.raises(ConfigError, match=rf"a{re.escape(suffix)} is damaged: .*{words}|{words}"):
        loaded(base, path)


def test_a_pickle_with_objects_is_refused(base: Path, tmp_path: Path) -> None:
    """Loading it could run any code."""
    torch.save({"model": transformer_tensors(), "args": Harmful()}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="holds Python objects besides tensors"):
        loaded(base, tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("held", "name"),
    [
        (Harmful(), r"\w*\.?test_refused_model_files\.Harmful"),
        (Namespace(lr=1e-4), r"argparse\.Namespace"),
        (np.float64(0.5), r"numpy\.\S*core\.multiarray\.scalar"),
        (Path("runs"), r"pathlib\.\S*PosixPath"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_published_file_with_objects_names_their_type_and_the_way_out(
    tmp_path: Path, held: object, name: str, zipped: bool
) -> None:
    """Whoever trained it saved its arguments beside the weights: what now, nobody said."""
    path = tmp_path / "a.pt"
    torch.save({"generator": {}, "args": held}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigError) as caught:
        read_pickled(path)
    assert re.search(rf"first a \S*{name}; reading them could run code", str(caught.value)), str(caught.value)
    way_out = re.escape(f"torch.save(torch.load('{path}', weights_only=False)[KEY")
    assert re.search(way_out, str(caught.value))


def test_a_checkpoint_beside_the_wrong_base_directory_names_both_sizes(base: Path, tmp_path: Path) -> None:
    """The 14B checkpoint beside the 1.3B directory would list nine hundred misshapen tensors."""
    sizes = json.loads((base / "config.json").read_text())
    root = write_original_base(tmp_path / "1.3B")
    small = {"dim": WAN_1_3B.dim, "num_layers": WAN_1_3B.num_layers, "num_heads": WAN_1_3B.num_heads}
    (root / "config.json").write_text(json.dumps(sizes | small))
    big = {f"model.blocks.{i}.modulation": torch.zeros(1) for i in range(WAN_14B.num_layers)}
    big["model.patch_embedding.weight"] = torch.zeros(WAN_14B.dim, 1)
    save_file(big, tmp_path / "krea.safetensors")
    with pytest.raises(ConfigError) as error:
        loaded(root, tmp_path / "krea.safetensors")
    for words in ("dim 5120 and 40 layers (Wan2.1-T2V-14B)", "dim 1536 and 30 layers (Wan2.1-T2V-1.3B)"):
        assert words in str(error.value)


def test_models_that_start_from_images_are_refused(tmp_path: Path) -> None:
    """Their first layer takes more channels; the error would be about shapes."""
    root = write_original_base(tmp_path / "i2v", weights=True)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"model_type": "i2v"}))
    with pytest.raises(ConfigError, match="model_type is 'i2v'; only text-to-video"):
        load_transformer(resolve(str(root)), torch.float32, "cpu")


BINARY = bytes(range(256))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("transformer/config.json", BINARY, r"transformer/config\.json is not a JSON object"),
        (
            "transformer/config.json",
            {"num_heads": 0},
            r"transformer/config\.json: num_heads is 0; sizes must",
        ),
        ("transformer/config.json", {"ffn_dim": "48"}, r"transformer/config\.json: ffn_dim is '48'; sizes"),
        ("transformer/diffusion_pytorch_model.safetensors.index.json", BINARY, "lists no shards"),
        ("vae/config.json", b"", r"vae/config\.json describes no AutoencoderKLWan"),
        ("vae/config.json", {"dim_mult": 4}, r"vae/config\.json describes no AutoencoderKLWan"),
        (
            "vae/config.json",
            b'"Wan-AI/Wan"',
            "no AutoencoderKLWan: it is no JSON object",
        ),  # no name on the hub
        ("text_encoder/config.json", b"[]", "can't read .*/text_encoder: "),
        ("text_encoder/config.json", {"d_ff": "x"}, "can't read .*/text_encoder: .*d_ff"),
        ("text_encoder/config.json", {"d_ff": 48}, r"do not fit its config\.json: .*mismatched.*wi_0"),
        ("tokenizer/tokenizer.json", b"{}", "can't read the tokenizer in"),
    ],
)
def test_a_part_that_is_not_what_its_settings_say_is_named(
    tmp_path: Path, file: str, content: bytes | dict[str, object], message: str
) -> None:
    """Settings of another size beside the weights, or half a download: a traceback of some library."""
    root = write_tiny_model(tmp_path / "model")
    path = root / file
    path.write_bytes(
        content if isinstance(content, bytes) else json.dumps(json.loads(path.read_text()) | content).encode()
    )
    with pytest.raises(ConfigError, match=message):
        _ = [look() for _, _, look in inspect(resolve(str(root)))]


def test_every_absent_file_is_named_at_once(base: Path, tmp_path: Path) -> None:
    """One at a time costs a round trip to the cluster each."""
    root = write_original_base(tmp_path / "wan")
    (root / "Wan2.1_VAE.pth").unlink()
    (root / "google" / "umt5-xxl" / "tokenizer_config.json").unlink()
    model = ModelConfig(path=str(root), lora_init=str(tmp_path / "no_lora"))
    with pytest.raises(ConfigError) as error:
        files_of(model)
    absent = ("Wan2.1_VAE.pth", "tokenizer_config.json", "diffusion_pytorch_model.safetensors", "no_lora")
    assert all(name in str(error.value) for name in absent)
    with pytest.raises(ConfigError, match=r"needs a file: set model\.checkpoint"):
        files_of(ModelConfig(path=str(base), checkpoint_key="generator"))


@pytest.mark.parametrize(
    "options",
    [
        {"base_model": "self_forcing", "checkpoint": "checkpoints/self_forcing_dmd.pt"},
        {"base_model": "my_run", "checkpoint": "/shared/checkpoints/self_forcing_dmd.pt"},
    ],
)
def test_a_published_model_on_shared_storage_is_known_by_its_name_or_its_checkpoint(
    options: dict[str, str], tmp_path: Path
) -> None:
    """The paths that a cluster needs were answered with another layout's files and no way to get any."""
    path = tmp_path / "wan_models" / "Wan2.1-T2V-1.3B"
    with pytest.raises(ConfigError) as error:
        files_of(ModelConfig(path=str(path), **options))
    text = str(error.value)
    assert f"{path}/Wan2.1_VAE.pth" in text and f"{path}/google/umt5-xxl/tokenizer.json" in text
    assert "self_forcing_dmd.pt" in text
    assert "transformer/" not in text and "vae/" not in text
    assert "`python launch.py models download self_forcing` puts wan_models/Wan2.1-T2V-1.3B and" in text
    write_tiny_model(path)
    (path / "vae" / "config.json").unlink()
    with pytest.raises(ConfigError, match="a model directory holds transformer/"):
        files_of(ModelConfig(path=str(path), **options))


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (read_original_vae, "patch_embedding.weight", r"part\.pth is of no known kind, not a VAE"),
        (read_original_vae, "token_embedding.weight", r"part\.pth is a text encoder, not a VAE"),
        (
            read_original_vae,
            "decoder.conv_in.weight",
            r"no original Wan VAE: it lacks encoder\.conv1",
        ),
        (read_original_text_encoder, "decoder.conv1.weight", r"part\.pth is a VAE, not a text encoder"),
        (read_original_text_encoder, "shared.weight", r"no original UMT5: it lacks 'blocks\.0\."),
    ],
)
def test_an_original_part_of_another_kind_is_named(
    read: Callable[[Path], object], name: str, message: str, tmp_path: Path
) -> None:
    """Two files under each other's names."""
    torch.save({name: torch.ones(1, 1)}, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "part.pth")
