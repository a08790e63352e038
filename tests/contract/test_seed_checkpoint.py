"""Going on from a checkpoint of the first Astrolabe release, written here as that code wrote them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from astrolabe_ray.cli.checkpoints import export_checkpoint
from astrolabe_ray.cli.inputs import find_checkpoint
from astrolabe_ray.config.schema import CheckpointConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.continued import Earlier, take_over
from astrolabe_ray.report.run_dir import RunDir, read_json, write_json
from astrolabe_ray.rollout_buffer import RolloutBuffer
from astrolabe_ray.types import PolicyVersion
from learner.spec import LearnerSpec
from tests.learner_cases import (
    SELECTIVE,
    batch,
    changed,
    published,
    running,
    samples,
)

RANK, ALPHA, STEP, UPDATES = 2, 4, 30, 29
DIM, FFN = 24, 32


def linears() -> list[tuple[str, int, int]]:
    """Every linear of the tiny model's two blocks in the order of the first release's model: in, out."""
    found = []
    for block in range(2):
        for attention in ("self_attn", "cross_attn"):
            found += [(f"blocks.{block}.{attention}.{name}", DIM, DIM) for name in "qkvo"]
        found += [(f"blocks.{block}.ffn.0", DIM, FFN), (f"blocks.{block}.ffn.2", FFN, DIM)]
    return found


def write_seed_checkpoint(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns its adapter by our names, and the state of each optimizer parameter."""
    generator = torch.Generator().manual_seed(1)
    lora: dict[str, Tensor] = {}
    for name, num_in, num_out in linears():
        for factor, shape in (("A", (RANK, num_in)), ("B", (num_out, RANK))):
            value = 0.1 * torch.randn(shape, generator=generator)
            lora[f"base_model.model.{name}.lora_{factor}.weight"] = value.to(torch.bfloat16)
    (folder / "lora").mkdir(parents=True)
    torch.save(lora, folder / "lora" / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none"}
    (folder / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    weights = [value.clone().requires_grad_() for value in lora.values()]
    adam = torch.optim.AdamW(weights, lr=1e-5)
    for _ in range(UPDATES):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(torch.bfloat16)
        adam.step()
    torch.save(adam.state_dict(), folder / "optimizer.pt")
    torch.save({}, folder / "scaler.pt")
    ours = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): v.float() for key, v in lora.items()
    }
    return ours, list(adam.state_dict()["state"].values())


async def test_its_adapters_and_moments_are_taken_and_people_are_told(
    spec: LearnerSpec,
    tmp_path: Path,
) -> None:
    """A moment that lands on another parameter is noise for a thousand steps, and nobody would see it."""
    folder = tmp_path / f"checkpoint-{STEP}"
    lora, adam = write_seed_checkpoint(folder)
    async with running(changed(spec, algorithm=SELECTIVE)) as learner:
        state = await learner.load(folder)
        assert learner.worker.version == PolicyVersion(1, STEP)
        for adapter in ("old", "ema"):
            got = await published(learner, adapter)
            assert got.keys() == lora.keys() and all(torch.equal(got[name], lora[name]) for name in lora)
        engine = learner.worker._engine
        assert torch.equal(engine.read("reference"), engine.read("default"))
        moments, num_updates = engine.optimizer_state()
        assert num_updates == UPDATES
        for key, flat in moments.items():
            named = engine.named(flat)
            assert all(
                torch.equal(named[name], own[key].float()) for name, own in zip(lora, adam, strict=True)
            )
    assert state["first_release_step"] == STEP
    assert "taken: optimizer.pt, Adam's moments after 29 updates" in state["notes"]
    assert any("not in such a file" in note for note in state["notes"])
    buffer = RolloutBuffer(num_groups=3, max_policy_age=0)
    buffer.resume(state)
    assert buffer.dispatch() == 3 * STEP


async def test_training_goes_on_from_it_and_saves_a_checkpoint_of_its_own(
    spec: LearnerSpec,
    tmp_path: Path,
) -> None:
    """The first save would write what the old file lacks as if it were there."""
    folder = tmp_path / f"checkpoint-{STEP}"
    write_seed_checkpoint(folder)
    async with running(spec) as learner:
        await learner.load(folder)
        told = [dataclasses.replace(s, policy_version=PolicyVersion(1, STEP)) for s in samples(STEP)]
        await learner.train(batch(STEP, told))
        want = await published(learner)
        await learner.save(tmp_path / "own" / "checkpoint-31", {"next_number": 8})
    async with running(spec) as learner:
        assert await learner.load(tmp_path / "own" / "checkpoint-31") == {"next_number": 8}
        got = await published(learner)
    assert all(torch.equal(got[name], want[name]) for name in want)


async def test_what_is_exported_in_its_layout_is_taken_with_every_moment(
    spec: LearnerSpec, tmp_path: Path
) -> None:
    """Files sort names as text, and parameters have numbers: both ways must agree."""
    run = RunDir.create(str(tmp_path), "tiny", "exports")
    write_json(run.config, {"learner": spec.learner.model_dump()})
    async with running(spec) as learner:
        await learner.train(batch(0, samples(0)))
        want = await published(learner, "ema")
        moments, _ = learner.worker._engine.optimizer_state()
        await learner.save(run.checkpoints / "checkpoint-1", {})
    export_checkpoint(run.path, tmp_path / "out", step="1", weights="ema", form="seed-checkpoint")
    async with running(spec) as learner:
        await learner.load(tmp_path / "out" / "checkpoint-1")
        got = await published(learner, "ema")
        taken, num_updates = learner.worker._engine.optimizer_state()
    assert num_updates == 1 and got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(flat.any() and torch.equal(taken[key], flat) for key, flat in moments.items())


@pytest.mark.parametrize("damage", ["absent", "few", "shape"])
async def test_an_optimizer_that_does_not_fit_is_left_out_aloud(
    spec: LearnerSpec,
    tmp_path: Path,
    damage: str,
) -> None:
    """A run that dies for its moments, or takes a part of them in silence."""
    folder = tmp_path / f"checkpoint-{STEP}"
    write_seed_checkpoint(folder)
    file = folder / "optimizer.pt"
    if damage == "absent":
        file.unlink()
    else:
        state = torch.load(file, weights_only=True)
        if damage == "few":
            state["param_groups"][0]["params"].pop()
        else:
            state["state"][3]["exp_avg"] = torch.zeros(1, 1)
        torch.save(state, file)
    reason = {
        "absent": "there is none",
        "few": "it has 39 parameters, the LoRA has 40",
        "shape": "its exp_avg of blocks.0.self_attn.k.lora_B is [1, 1], the LoRA's tensor is [24, 2]",
    }[damage]
    async with running(spec) as learner:
        state = await learner.load(folder)
        assert f"not taken: optimizer.pt ({reason}); Adam begins anew" in state["notes"]
        moments, num_updates = learner.worker._engine.optimizer_state()
    assert num_updates == 0
    assert not any(flat.any() for flat in moments.values())


async def test_an_adapter_of_another_rank_is_refused_with_the_options_to_set(
    spec: LearnerSpec,
    tmp_path: Path,
) -> None:
    """The shapes alone would be named, and not what to do."""
    folder = tmp_path / f"checkpoint-{STEP}"
    write_seed_checkpoint(folder)
    async with running(changed(spec, lora={"rank": 3})) as learner:
        with pytest.raises(ConfigError, match=r"--config\.lora\.rank=2 --config\.lora\.alpha=4"):
            await learner.load(folder)


def test_the_command_line_accepts_its_folder(tmp_path: Path) -> None:
    """It has no manifest, like a torn one of ours, which must still be refused."""
    folder = tmp_path / "checkpoints" / f"checkpoint-{STEP}"
    write_seed_checkpoint(folder)
    asked = CheckpointConfig(resume=str(folder))
    assert find_checkpoint(asked, []) == folder
    run_dir = RunDir.create(str(tmp_path), "tiny", "goes_on")
    assert take_over(folder, run_dir) == Earlier()
    assert read_json(run_dir.origin)["step"] == STEP
    (folder / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"manifest\.json is missing"):
        find_checkpoint(asked, [])
