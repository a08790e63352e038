"""`launch.py checkpoints`: what is there, whether it is sound, weights out of it, room."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner, Result

import launch
from astrolabe_ray.cli.app import make_app
from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora import adapter_tensors, add_adapters
from astrolabe_ray.models.lora_files import read_lora
from astrolabe_ray.models.wan.transformer import CausalWanModel
from astrolabe_ray.report.run_dir import RunDir, write_json
from tests.resumable_run import carry_on, resumable
from tests.tiny_model import ARCHITECTURE, write_tiny_model

REWARDS = {1: 0.5, 2: 0.875, 3: 0.25}


def checkpoints(*arguments: object) -> Result:
    return CliRunner().invoke(make_app(launch.WIRING), ["checkpoints", *map(str, arguments)])


def lines_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of three steps with a checkpoint after each; only its held-out rewards are invented."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    config = resumable(write_tiny_model(root / "model"), root / "logs", num_steps=3)
    evaluation = config.evaluation.model_copy(update={"every_steps": 0, "num_prompts": 1})
    run_dir = carry_on(config.model_copy(update={"evaluation": evaluation}))
    write_json(run_dir.config, config.model_dump(mode="json"))
    rows = (
        {
            "step": step,
            "phase": "after" if step == 3 else f"step-{step}",
            "records": [{"prompt": "a", "seed": 1, "total": total}],
        }
        for step, total in REWARDS.items()
    )
    run_dir.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def damage(run: Path, step: int, name: str) -> None:
    with (run / "checkpoints" / f"checkpoint-{step}" / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_list_tells_what_is_sound_and_what_is_best(run: Path) -> None:
    """Whoever takes the newest may take a damaged one, or one that got worse."""
    damage(run, 3, "adapters/ema.safetensors")
    _, first, second, third = lines_of(checkpoints("list", run))
    assert first.split()[0] == "1" and first.endswith("0.5000 old  valid")
    assert second.split()[0] == "2" and second.endswith("0.8750 old  valid, best")
    assert third.split()[0] == "3"
    assert third.endswith("0.2500 ema  DAMAGED: adapters/ema.safetensors is not what was written")


def test_verify_names_every_damage_and_fails(run: Path) -> None:
    """One bit of a moment on a failing disk, found a week later."""
    assert [line.rpartition(": ")[2] for line in lines_of(checkpoints("verify", run))] == ["valid"] * 3
    damage(run, 1, "learner/optimizer.safetensors")
    (run / "checkpoints" / "checkpoint-1" / "adapters" / "old.safetensors").unlink()
    (run / "checkpoints" / "checkpoint-2" / "manifest.json").write_text("[]")
    result = checkpoints("verify", run)
    assert result.exit_code == 1
    told = [line.rpartition("/checkpoint-")[2] for line in result.output.splitlines()]
    assert told == [
        "1: adapters/old.safetensors is missing",
        "1: learner/optimizer.safetensors is not what was written",
        "2: manifest.json is missing or unreadable",
        "3: valid",
    ]


def test_the_exported_weights_are_those_that_were_asked_for(run: Path, tmp_path: Path) -> None:
    """The averaged weights under the name of the trained ones are only seen to be worse."""
    assert (
        "ema weights of step 2" in lines_of(checkpoints("export", run, tmp_path / "b", "--step", "best"))[0]
    )
    for weights, adapter in (("ema", "ema"), ("raw", "default"), ("old", "old")):
        for step in (1, 3):
            out = tmp_path / f"{weights}-{step}"
            lines_of(
                checkpoints("export", run, out, "--step", step, "--weights", weights, "--format", "seed")
            )
            want = load_file(run / f"checkpoints/checkpoint-{step}/adapters/{adapter}.safetensors")
            got = torch.load(out / "adapter_model.bin", weights_only=True)
            assert len(got) == len(want) == 40
            assert all(torch.equal(got[f"base_model.model.{name}.weight"], want[name]) for name in want)
    assert not torch.equal(
        *(read_lora(tmp_path / f"{w}-3").tensors["blocks.0.ffn.0.lora_B"] for w in ("ema", "raw"))
    )


class Linears(nn.Module):
    """Layers of the names that the adapter has, for PEFT itself."""

    def __init__(self, names: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (num_in, num_out) in names.items():
            owner: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.add_module(last, nn.Linear(num_in, num_out))


def test_peft_and_diffusers_read_what_is_exported(run: Path, tmp_path: Path) -> None:
    """A layout that only we can read takes nobody anywhere."""
    lines_of(checkpoints("export", run, tmp_path / "peft"))
    want = load_file(run / "checkpoints/checkpoint-3/adapters/ema.safetensors")
    names = {
        name.removesuffix(".lora_A"): (want[name].shape[1], want[name.replace("lora_A", "lora_B")].shape[0])
        for name in want
        if name.endswith("lora_A")
    }
    model = PeftModel.from_pretrained(Linears(names), tmp_path / "peft")  # type: ignore[arg-type]
    state = model.state_dict()
    for name, tensor in want.items():
        assert torch.equal(state[f"base_model.model.{name}.default.weight"], tensor)
    lines_of(checkpoints("export", run, tmp_path / "diffusers", "--format", "diffusers"))
    (file,) = (tmp_path / "diffusers").iterdir()
    scaled = load_file(file)["diffusion_model.blocks.1.ffn.2.lora_B.weight"]
    torch.testing.assert_close(scaled, 2 * want["blocks.1.ffn.2.lora_B"])  # alpha 4 / rank 2


def test_an_adamw_in_bfloat16_goes_on_from_the_layout_of_the_first_release(run: Path, tmp_path: Path) -> None:
    """A moment that lands on another parameter is noise for a thousand steps, and nobody would see it."""
    (said,) = lines_of(
        checkpoints("export", run, tmp_path / "out", "--step", 2, "--format", "seed-checkpoint")
    )
    assert said.startswith(f"{tmp_path / 'out' / 'checkpoint-2'}: ema weights of step 2")
    folder, ours = tmp_path / "out" / "checkpoint-2", run / "checkpoints" / "checkpoint-2"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["lora/adapter_config.json", "lora/adapter_model.bin", "optimizer.pt", "scaler.pt"]
    assert torch.load(folder / "scaler.pt", weights_only=True) == {}

    wrapped = add_adapters(CausalWanModel(ARCHITECTURE), LoraConfig(rank=2, alpha=4), ["default"])
    params = {name: p.detach().to(torch.bfloat16) for name, p in adapter_tensors(wrapped, "default").items()}
    adam = torch.optim.AdamW(params.values(), lr=0.5)
    adam.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    assert adam.param_groups[0]["lr"] == 1e-2
    flats = load_file(ours / "learner" / "optimizer.safetensors")
    assert flats.keys() == {"exp_avg", "exp_avg_sq"} and all(flat.any() for flat in flats.values())
    for key, flat in flats.items():
        for param, piece in zip(
            params.values(), flat.split([p.numel() for p in params.values()]), strict=True
        ):
            assert torch.equal(adam.state[param][key], piece.view_as(param).to(torch.bfloat16))
            assert adam.state[param]["step"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "no checkpoint of step 7; there are: newest, best, 1, 2, 3"),
        (["--step", "1"], "checkpoint-1 can't be exported: adapters/ema.safetensors is not what was written"),
        (["--weights", "best"], "there are no weights 'best'; there are: ema, raw, old"),
        (
            ["--format", "onnx"],
            "there is no format 'onnx'; there are: peft, seed, diffusers, seed-checkpoint",
        ),
    ],
)
def test_an_export_that_can_not_be_is_refused(
    run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Exit code 0 with an empty or wrong folder."""
    damage(run, 1, "adapters/ema.safetensors")
    result = checkpoints("export", run, tmp_path / "out", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_pruning_is_a_rehearsal_unless_it_is_asked_to_delete(run: Path) -> None:
    """A command that is tried out must not cost a week of training."""
    draft = run / "checkpoints" / "tmp-checkpoint-2.1234"
    draft.mkdir()
    (draft / "half").write_bytes(b"0" * 1000)
    fresh = run / "checkpoints" / "tmp-checkpoint-4.5678"
    fresh.mkdir()  # its writer may be at work
    old = time.time() - 7200
    os.utime(draft, (old, old))
    before = folders(run)
    told = lines_of(checkpoints("prune", run, "--keep", "1"))
    assert folders(run) == before
    assert [line.split()[0] for line in told[:3]] == ["would", "stays", "stays"]
    assert "left by a run that was killed" in told[3] and "would be free; add --delete" in told[4]
    lines_of(checkpoints("prune", run, "--keep", "1", "--delete"))
    assert folders(run) == ["checkpoint-2", "checkpoint-3", fresh.name], "the best one and the newest"
    lines_of(checkpoints("prune", run, "--keep", "1", "--no-keep-best", "--delete"))
    assert folders(run) == ["checkpoint-3", fresh.name]


def test_pruning_never_takes_the_newest_valid_one(run: Path) -> None:
    """With the newest damaged, the one before it is all that is left of the run."""
    damage(run, 3, "state.json")
    lines_of(checkpoints("prune", run, "--keep", "1", "--no-keep-best", "--delete"))
    assert folders(run) == ["checkpoint-2", "checkpoint-3"]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """`checkpoints list` of a wrong folder must not look like a run without checkpoints."""
    for command in ("list", "verify", "prune"):
        result = checkpoints(command, tmp_path)
        assert isinstance(result.exception, ConfigError)
        assert "Name the folder of a run" in str(result.exception)
    assert RunDir(tmp_path).checkpoints.exists() is False
