"""`launch.py models`: what is here, what is wrong with it, how it gets here, and LoRA files anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import launch
from astrolabe_ray.cli.app import make_app
from astrolabe_ray.config.base_models import BASE_MODELS, HubFiles, PublishedModel
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora_files import read_lora, write_lora
from tests.hub_server import hub_of
from tests.published_layouts import transformer_tensors, write_original_base
from tests.tiny_model import write_tiny_model
from tests.unit.test_lora_files import random_lora

ROOT = Path(__file__).parents[2]


def download(name: str, *, cwd: Path, endpoint: str | None) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the hub's library reads its environment once; None: offline."""
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint} if endpoint else {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "models", "download", name],
        cwd=cwd,
        env={**os.environ, **online, "PYTHONPATH": str(ROOT), "HF_HOME": str(cwd / "hf")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr[done.stderr.index("error: ") :]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """`launch.py models ARGUMENTS` in `tmp_path`, in this process: what it prints."""
    monkeypatch.chdir(tmp_path)
    app = make_app(launch.WIRING)

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False).stdout

    return run


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the publishers of Self-Forcing and of its base have on the hub, small."""
    root = tmp_path_factory.mktemp("hub")
    write_original_base(root / "Wan-AI" / "Wan2.1-T2V-1.3B", weights=True)
    checkpoint = root / "gdhe17" / "Self-Forcing" / "checkpoints" / "self_forcing_dmd.pt"
    checkpoint.parent.mkdir(parents=True)
    named = {f"model.{name}": tensor for name, tensor in transformer_tensors().items()}
    torch.save({"generator": named, "generator_ema": named}, checkpoint)
    gated = root / "zhuhz22" / "Causal-Forcing" / "chunkwise" / "causal_forcing.pt"
    gated.parent.mkdir(parents=True)
    for path in (gated, root / "zhuhz22" / "Causal-Forcing" / "gated"):
        path.touch()
    return root


def test_a_downloaded_model_is_listed_and_checked(published: Path, tmp_path: Path, models) -> None:
    """Files in another folder than the presets read are as good as none, and may be 20 GB."""
    with hub_of(published) as endpoint:
        done = download("self_forcing", cwd=tmp_path, endpoint=endpoint)
    assert done.returncode == 0, done.stderr
    base = tmp_path / "wan_models" / "Wan2.1-T2V-1.3B"
    assert not (base / "diffusion_pytorch_model.safetensors").exists()  # the checkpoint replaces it
    listed = models("list")
    mine = listed[: listed.index("\ncausal_forcing ")]
    assert "absent" not in mine and "there   checkpoints/self_forcing_dmd.pt" in mine
    assert "generator_ema, 2 layers of dim 24" in models("check", "self_forcing")
    whole = (tmp_path / "checkpoints" / "self_forcing_dmd.pt").read_bytes()
    (tmp_path / "checkpoints" / "self_forcing_dmd.pt").write_bytes(whole[:-1000])
    (base / "Wan2.1_VAE.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"(?s)dmd\.pt is damaged.*VAE\.pth is damaged: it is empty"):
        models("check", "self_forcing")


def test_a_model_that_is_not_here_names_the_command_that_fetches_it(models) -> None:
    """Where files must go is otherwise a matter of reading code."""
    with pytest.raises(ConfigError) as error:
        models("check", "krea14b")
    assert "wan_models/Wan2.1-T2V-14B/Wan2.1_VAE.pth" in str(error.value)
    assert "checkpoints/krea-realtime-video-14b.safetensors" in str(error.value)
    assert "python launch.py models download krea14b" in str(error.value)
    assert "absent  checkpoints/krea-realtime-video-14b.safetensors" in models("list")


def test_a_hub_without_the_file_or_out_of_reach_says_how_to_do_it_by_hand(
    published: Path, tmp_path: Path
) -> None:
    """Clusters are often offline, and repositories move."""
    with hub_of(published) as endpoint:
        error = error_of(download("krea14b", cwd=tmp_path, endpoint=endpoint))
        assert "the hub has no repository Wan-AI/Wan2.1-T2V-14B" in error and "by hand" in error
        error = error_of(download("causal_forcing", cwd=tmp_path, endpoint=endpoint))
        assert "zhuhz22/Causal-Forcing wants its licence accepted" in error and "HF_TOKEN" in error
    error = error_of(download("self_forcing", cwd=tmp_path, endpoint=None))  # its base is here by now
    assert "gdhe17/Self-Forcing gave no checkpoints/self_forcing_dmd.pt" in error and "by hand" in error
    (tmp_path / "away").mkdir()
    for unreachable in (endpoint, None):
        error = error_of(download("self_forcing", cwd=tmp_path / "away", endpoint=unreachable))
        assert "HF_HUB_OFFLINE" in error and "by hand" in error


def test_a_published_model_is_of_use_without_its_lora(
    models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` refused LongLive's base, which is complete, for want of a LoRA that nobody asked for."""
    write_tiny_model(tmp_path / "mine")
    published = PublishedModel("tiny", ModelConfig(base_model="mine", path="mine"), lora="loras/lora.pt")
    monkeypatch.setitem(BASE_MODELS, "mine", published)
    printed = models("check", "mine")
    assert "lora  loras/lora.pt  absent; the model is of use without it" in printed
    assert "mine can be used" in printed


@pytest.mark.parametrize("absent", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_came_in_part_is_not_taken_for_a_whole_one(
    published: Path, tmp_path: Path, absent: str
) -> None:
    """A folder that was there counted as everything in it; the run found out, on its nodes."""
    hub = tmp_path / "hub"
    shutil.copytree(published, hub)
    (hub / "Wan-AI" / "Wan2.1-T2V-1.3B" / "google" / "umt5-xxl" / absent).unlink()
    with hub_of(hub) as endpoint:
        error = error_of(download("self_forcing", cwd=tmp_path, endpoint=endpoint))
    assert f"gave no wan_models/Wan2.1-T2V-1.3B/google/umt5-xxl/{absent}" in error


def test_a_model_of_ones_own_is_listed_and_read_where_it_lies(
    models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An added entry without a publisher, or with a directory of folders, was read as something else."""

    def add(name: str, *sources: HubFiles) -> None:
        config = ModelConfig(base_model=name, path="mine")
        monkeypatch.setitem(BASE_MODELS, name, PublishedModel("tiny", config, sources))

    add("mine")
    with pytest.raises(ConfigError, match="a model directory holds transformer/, vae/"):
        models("check", "mine")
    with pytest.raises(ConfigError, match="mine has no publisher; put its files where"):
        models("download", "mine")
    assert "absent  mine\n" in models("list")
    write_tiny_model(tmp_path / "mine")
    assert "there   mine  " in models("list")
    assert "2 layers of dim 24" in models("check", "mine")
    add("theirs", HubFiles("someone/tiny", ("transformer/*",), "mine"))
    assert "2 layers of dim 24" in models("check", "theirs")


@pytest.mark.parametrize("command", ["check", "download"])
def test_an_unknown_model_names_the_likeliest_one(command: str, models) -> None:
    """A typing mistake is not a missing file."""
    with pytest.raises(ConfigError, match=r"did you mean 'longlive'\?"):
        models(command, "longlvie")


def test_a_lora_is_exported_for_whom_it_is_asked_for(tmp_path: Path, models) -> None:
    """A trained adapter that only this project reads is of little use."""
    (tmp_path / "checkpoint-30" / "lora").mkdir(parents=True)
    lora = random_lora()
    write_lora(lora, tmp_path / "checkpoint-30" / "lora")
    models("export-lora", "checkpoint-30", "pickled", "--format", "seed")
    assert (tmp_path / "pickled" / "adapter_model.bin").exists()
    again = read_lora(tmp_path / "pickled")
    assert (again.rank, again.alpha) == (lora.rank, lora.alpha)
    models("export-lora", "pickled", "pipeline", "--format=diffusers")
    with safe_open(tmp_path / "pipeline" / "pytorch_lora_weights.safetensors", "pt") as file:
        exported = file.get_tensor("diffusion_model.blocks.0.ffn.0.lora_B.weight")
    torch.testing.assert_close(exported, 2 * lora.tensors["blocks.0.ffn.0.lora_B"])  # alpha 6, rank 3
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        models("export-lora", "pickled", "pipeline")
    with pytest.raises(ConfigError, match="there is no format 'onnx'; there are: peft, seed, diffusers"):
        models("export-lora", "pickled", "new", "--format=onnx")


def test_every_file_that_a_published_model_names_has_a_publisher() -> None:
    """`download` would say that everything is there, and the run that it is not."""
    for name, model in BASE_MODELS.items():
        offered = {str(path) for source in model.sources for path in source.paths}
        needed = {model.config.checkpoint, model.lora} - {None}
        assert needed <= offered, name
        assert model.model_config().base_model == name
        if model.sources:
            assert str(Path(model.config.path, "config.json")) in offered
