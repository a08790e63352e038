"""`pretrain`: which parts are trained, where they go, and that they load afterwards."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from astrolabe_ray.cli.pretrain import NEEDED_BY_TRANSFORMER, PARTS, pretrain
from astrolabe_ray.data.sprites.training import Trainer
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from reward_servers.scorers import ScorerSetup
from reward_servers.tiny_clip_scorer import TinyClipScorer

COUNTS = {
    "vae": ["NUM_CLIPS"],
    "clip": ["NUM_CLIPS"],
    "transformer": ["NUM_CLIPS", "NUM_TRAJECTORIES", "NUM_ODE_STEPS"],
}
TEXT_FILES = ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"]


@pytest.fixture
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clips, and at most two steps in each stage of training: nothing is learnt, all is written."""
    run = Trainer.run

    def short_run(self: Trainer, loss: Callable[[], Tensor], *, num_steps: int) -> None:
        run(self, loss, num_steps=min(2, num_steps))

    monkeypatch.setattr(Trainer, "run", short_run)
    for part, names in COUNTS.items():
        for name in names:
            monkeypatch.setattr(import_module(f"astrolabe_ray.data.sprites.train_{part}"), name, 2)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def message_of(parts: list[str], out: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        pretrain(parts, seed=0, out=out)
    return str(caught.value)


@pytest.mark.usefixtures("tiny_budget")
def test_all_parts_make_a_model_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An hour of training would end in a folder that the trainer refuses."""
    out = tmp_path / "new" / "model"
    pretrain(["all"], seed=0, out=out)
    files = resolve(str(out))
    architecture = load_transformer(files, torch.float32, "cpu").architecture
    encoder = TextEncoder.load(
        files.text_encoder, files.tokenizer, architecture.text_len, "cpu", torch.float32
    )
    assert encoder.encode(["a"]).shape == (1, architecture.text_len, architecture.text_dim)
    latents = VideoVAE.load(files.vae, "cpu", torch.float32).encode(torch.zeros(1, 5, 3, 32, 32))
    assert latents.shape == (1, 2, architecture.in_channels, 4, 4)
    TinyClipScorer(ScorerSetup(), folder=out)
    printed = capsys.readouterr().out
    assert [line.split(":")[0] for line in printed.splitlines() if str(out) in line][:-1] == list(PARTS)
    assert f"--config.model.path={out}" in printed


@pytest.mark.usefixtures("tiny_budget")
def test_one_part_leaves_the_others_alone(tmp_path: Path) -> None:
    """A new judge must not change the model that it judges."""
    pretrain(["text_encoder"], seed=0, out=tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in TEXT_FILES}
    pretrain(["clip"], seed=1, out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"text_encoder", "tokenizer", "clip"}
    assert files_in(tmp_path / "clip") == {"config.json", "model.safetensors"}
    assert {name: (tmp_path / name).read_bytes() for name in TEXT_FILES} == before


@pytest.mark.usefixtures("tiny_budget")
@pytest.mark.parametrize(
    ("part", "file"),
    [("text_encoder", "text_encoder/model.safetensors"), ("clip", "clip/model.safetensors")],
)
def test_a_seed_decides_the_weights(tmp_path: Path, part: str, file: str) -> None:
    """Weights that can't be made again can't be trusted."""
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        pretrain([part], seed=seed, out=tmp_path / str(number))
        weights.append(load_file(tmp_path / str(number) / file))
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_unknown_part_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The parts before it would be trained for nothing."""
    out = tmp_path / "model"
    message = message_of(["text_encoder", "transfromer"], out)
    assert "there is no part 'transfromer'; did you mean 'transformer'?" in message
    assert all(part in message for part in (*PARTS, "all"))
    assert not out.exists()


@pytest.mark.parametrize("parts", [["transformer"], ["transformer", "vae"], ["clip", "transformer"]])
def test_a_transformer_without_its_parts_is_refused(tmp_path: Path, parts: list[str]) -> None:
    """It is trained on latents and embeddings, so its training would end in a traceback."""
    message = message_of(parts, tmp_path / "model")
    for part in NEEDED_BY_TRANSFORMER:
        assert (part in message) == (part not in parts)
    assert str(tmp_path / "model") in message
    assert not (tmp_path / "model").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """It would show as a traceback of mkdir."""
    file = tmp_path / "model"
    file.write_text("in the way")
    message = message_of(["clip"], file)
    assert str(file) in message
    assert "--out" in message
