"""A learner that starts from a LoRA: every policy starts there, and the reference stays there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora import MergedLinears, adapter_tensors
from astrolabe_ray.models.lora_files import Lora, write_lora
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.weights.probe import probe_output
from learner.spec import LearnerSpec
from tests.learner_cases import SEED, assert_close, batch, changed, published, running, samples
from tests.plain_learner import PlainLearner
from tests.tiny_policy import random_adapters


@pytest.fixture
def initial_lora(spec: LearnerSpec, tmp_path: Path) -> tuple[Lora, Path]:
    """A LoRA far from nothing, in the shape of `spec`, and its folder."""
    lora = Lora(random_adapters(Path(spec.model.path), seed=8), rank=2, alpha=4)
    folder = tmp_path / "initial"
    folder.mkdir()
    write_lora(lora, folder)
    return lora, folder


async def test_training_from_a_lora_is_training_its_merged_model_apart_from_where_it_starts(
    spec: LearnerSpec, initial_lora: tuple[Lora, Path]
) -> None:
    """All policies start from the LoRA, the reference stays there: the first penalty is exactly zero."""
    lora, folder = initial_lora
    spec = changed(spec, model={"lora_init": str(folder)})
    async with running(spec) as learner:
        assert_close(await published(learner), lora.tensors, atol=0)
        assert_close(await published(learner, "ema"), lora.tensors, atol=0)
        first = await learner.train(batch(0, samples(0)))
        assert first.metrics["kl_loss"] == 0
        model = learner.worker._engine.model
        kept = adapter_tensors(model, "reference")
        assert all(torch.equal(kept[name], tensor) for name, tensor in lora.tensors.items())
        assert not any(tensor.requires_grad for tensor in kept.values())
        second = await learner.train(batch(1, samples(1)))
        assert 0 < second.metrics["kl_loss"] < 1e-2


@pytest.mark.parametrize("kl_reference", ["start", "base"])
async def test_steps_from_a_lora_equal_a_plain_float64_learner_that_starts_there(
    spec: LearnerSpec, initial_lora: tuple[Lora, Path], kl_reference: str
) -> None:
    """A third adapter could take part in the forward, or the penalty pull to another place."""
    spec = changed(spec, model={"lora_init": str(initial_lora[1])}, algorithm={"kl_reference": kl_reference})
    async with running(spec) as learner:
        plain = PlainLearner(spec, initial_lora[0].tensors)
        for step in range(2):
            all_samples = samples(step, stale=2 if step else 0)
            result = await learner.train(batch(step, all_samples[:2], all_samples[2:]))
            assert (result.metrics["kl_loss"] > 0) == (step > 0 or kl_reference == "base")
            for name, value in plain.train(all_samples, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert_close(await published(learner), plain.old[result.version], atol=2e-6)


@pytest.mark.parametrize("zero_stage", [2, 3])
async def test_the_reference_of_a_run_from_a_lora_is_the_merged_model(
    spec: LearnerSpec, initial_lora: tuple[Lora, Path], zero_stage: int
) -> None:
    """The penalty would pull back to the base, and undo the LoRA that training started from."""
    lora, folder = initial_lora
    spec = changed(spec, model={"lora_init": str(folder)}, learner={"zero_stage": zero_stage})
    async with running(spec) as learner:
        for step in range(2):
            await learner.train(batch(step, samples(step)))
        got = learner.worker._reference_probe()
        before = await learner.probe(0)
    base = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    MergedLinears(base, lora.scale).load(lora.tensors)
    want = probe_output(base, base.architecture, 0)
    assert got == pytest.approx(want, abs=2e-5)
    assert before != pytest.approx(want, abs=1e-4)  # the trained policy has left it


async def test_a_lora_of_another_size_names_the_options_that_fit(
    spec: LearnerSpec, initial_lora: tuple[Lora, Path]
) -> None:
    """Another alpha would scale every layer of the LoRA."""
    spec = changed(spec, model={"lora_init": str(initial_lora[1])}, lora={"alpha": 2})
    with pytest.raises(ConfigError, match=r"--config\.lora\.rank=2 --config\.lora\.alpha=4"):
        async with running(spec):
            pass


async def test_a_checkpoint_is_not_continued_with_another_initial_lora(
    spec: LearnerSpec, initial_lora: tuple[Lora, Path], tmp_path: Path
) -> None:
    """The same adapter, but a penalty that from then on pulls elsewhere."""
    async with running(changed(spec, model={"lora_init": str(initial_lora[1])})) as learner:
        await learner.save(tmp_path / "checkpoint-0", {})
        await learner.load(tmp_path / "checkpoint-0")
    async with running(spec) as learner:
        with pytest.raises(ConfigError, match=r"made with another initial LoRA than None.*model\.lora_init"):
            await learner.load(tmp_path / "checkpoint-0")
