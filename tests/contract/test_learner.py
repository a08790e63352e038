"""What every learner promises, shown on the one without Ray."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from astrolabe_ray.errors import AstrolabeError, ConfigError, WeightMismatch
from astrolabe_ray.models.lora import MergedLinears
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.types import PolicyVersion
from astrolabe_ray.weights.pack import unpack
from astrolabe_ray.weights.probe import probe_output
from benchmarks.live_bytes import LiveBytes
from learner.spec import LearnerSpec
from tests.learner_cases import (
    SEED,
    SELECTIVE,
    assert_close,
    batch,
    changed,
    penalised,
    published,
    running,
    samples,
)
from tests.plain_learner import PlainLearner

BLOCK_LINEARS = 2 * 10  # two blocks; q, k, v, o twice and two of the feed-forward


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("schedule", ["none", "linear"])
async def test_three_steps_equal_a_plain_float64_learner(
    spec: LearnerSpec, zero_stage: int, schedule: str
) -> None:
    """Loss weights, stale behaviour versions, penalty, clipping, Adam, old policy and EMA all at once.

    Weights move by 1e-2 a step; 2e-6 is what float32 leaves of the gradients (1e-7 of the loss).
    """
    spec = changed(spec, learner={"zero_stage": zero_stage}, algorithm={"old_policy_decay": schedule})
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step in range(3):
            all_samples = samples(step, stale=2 if step else 0)
            result = await learner.train(batch(step, all_samples[:2], all_samples[2:5], all_samples[5:]))
            want = plain.train(all_samples, SEED)
            assert result.version == PolicyVersion(0, step + 1)
            for name, value in want.items():
                assert result.metrics[name] == pytest.approx(value, rel=2e-5), name
            assert_close(await published(learner), plain.old[result.version], atol=2e-6)
            assert_close(await published(learner, "ema"), plain.ema, atol=2e-6)


@pytest.mark.parametrize("selective", [False, True])
async def test_a_step_is_the_same_for_every_split_into_microbatches(
    spec: LearnerSpec, selective: bool
) -> None:
    """A mean of microbatch means would weigh a lone sample like five, or a lone penalised one like three."""
    if selective:
        spec = changed(spec, algorithm=SELECTIVE)
    results = []
    for cut in ((6,), (1, 5), (1, 1, 4)):
        async with running(spec) as learner:
            for step in range(2):
                pieces, rest = [], penalised(samples(step)) if selective else samples(step)
                for size in cut:
                    pieces.append(rest[:size])
                    rest = rest[size:]
                metrics = (await learner.train(batch(step, *pieces))).metrics
            results.append((await published(learner), metrics["kl_loss"]))
    for weights, kl_loss in results[1:]:
        assert_close(weights, results[0][0], atol=1e-6)
        assert kl_loss == pytest.approx(results[0][1], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
async def test_a_lagging_reference_equals_a_plain_float64_learner(spec: LearnerSpec, zero_stage: int) -> None:
    """The penalty counts for two samples of six, and its reference is 0 to 2 steps old."""
    spec = changed(spec, learner={"zero_stage": zero_stage}, algorithm=SELECTIVE)
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        ages = []
        for step in range(5):
            all_samples = penalised(samples(step))
            result = await learner.train(batch(step, all_samples[:2], all_samples[2:5], all_samples[5:]))
            want = plain.train(all_samples, SEED)
            ages.append(result.metrics["kl/reference_age"])
            for name, value in want.items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5, abs=1e-12), name
            assert_close(await published(learner, "ema"), plain.ema, atol=5e-6)
        assert ages == [0, 1, 2, 0, 1]
        assert result.metrics["kl/reference_refreshes"] == 1
        assert result.metrics["kl_loss"] > 1e-6


async def test_a_reference_may_lag_with_a_penalty_for_every_sample(spec: LearnerSpec) -> None:
    """One that stays where training began would hold a long run back."""
    spec = changed(
        spec, algorithm={"kl_reference": "lagging", "reference_max_age": 1, "reference_max_kl": 1e9}
    )
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        ages = []
        for step in range(3):
            result = await learner.train(batch(step, samples(step)))
            want = plain.train(samples(step), SEED)
            ages.append(result.metrics["kl/reference_age"])
            for name, value in want.items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5, abs=1e-12), name
        assert ages == [0, 1, 0]


@pytest.mark.parametrize("zero_stage", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
async def test_training_on_windows_equals_a_plain_float64_learner(spec: LearnerSpec, zero_stage: int) -> None:
    """Noise, loss and penalty of the window only, behind context that each policy computes for itself."""
    spec = changed(spec, learner={"zero_stage": zero_stage, "gradient_checkpointing": True})
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step in range(3):
            starts = [3, 3, 3, 4, 0, 0]
            all_samples = [
                dataclasses.replace(sample, window_start=start)
                for start, sample in zip(starts, samples(step, stale=2 if step else 0, frames=5), strict=True)
            ]
            result = await learner.train(
                batch(step, all_samples[:2], all_samples[2:3], all_samples[3:4], all_samples[4:])
            )
            for name, value in plain.train(all_samples, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5), name
            assert_close(await published(learner), plain.old[result.version], atol=2e-6)


@pytest.mark.parametrize("detach_context", [True, False])
async def test_clips_behind_a_shared_prefix_equal_a_plain_float64_learner(
    spec: LearnerSpec, detach_context: bool
) -> None:
    """A prefix that is lost, put behind its clip or trained on; the plain learner gets whole videos."""
    spec = changed(
        spec,
        learner={"gradient_checkpointing": True},
        algorithm={"train_window_frames": 2, "detach_context": detach_context},
    )
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        for step in range(2):
            clips = [dataclasses.replace(s, window_start=3) for s in samples(step, frames=2)]
            prefix = samples(step + 9, number=1)[0].latents
            whole = [dataclasses.replace(s, latents=np.concatenate([prefix, s.latents])) for s in clips]
            shared = [dataclasses.replace(s, prefix=prefix) for s in clips]
            result = await learner.train(batch(step, shared[:2], shared[2:]))
            for name, value in plain.train(whole, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5), name
            assert_close(await published(learner), plain.old[result.version], atol=2e-6)


@pytest.mark.parametrize("zero_stage", [2, pytest.param(3, marks=pytest.mark.slow)])
async def test_each_policy_looks_at_the_history_of_a_group_once_in_a_step(
    spec: LearnerSpec, zero_stage: int
) -> None:
    """Three policies would go through minutes of video for each microbatch; or one policy, prompt or step
    would be trained behind another one's keys and values. Under ZeRO 3 ranks may not differ: none skips."""
    spec = changed(spec, learner={"zero_stage": zero_stage}, algorithm={"train_window_frames": 2})
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        looked: list[int] = []
        embedding = learner.worker._engine.model.get_base_model().patch_embedding

        def look(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            looked.append(len(args[0]) if args[0].shape[1] == 1 else 0)  # a context of chunks of one frame

        embedding.register_forward_pre_hook(look)
        for step in range(2):
            looked.clear()
            made, whole = [], []
            for group, prompt in enumerate(("a red circle", "a blue square", "a blue square")):
                prefix = samples(step + 9 * (group > 0), number=1)[0].latents  # the same for the last two
                prefix = prefix if group < 2 else prefix.copy()
                for clip in samples(step, number=9, stale=3 * step, frames=2)[3 * group : 3 * group + 3]:
                    made.append(dataclasses.replace(clip, prompt=prompt, window_start=3, prefix=prefix))
                    latents = np.concatenate([prefix, clip.latents])
                    whole.append(dataclasses.replace(clip, prompt=prompt, window_start=3, latents=latents))
            cuts = (made[:2], made[2:3], made[3:5], made[5:6], made[6:7], made[7:])
            result = await learner.train(batch(step, *cuts))
            for name, value in plain.train(whole, SEED).items():
                assert result.metrics[name] == pytest.approx(value, rel=5e-5), name
            assert_close(await published(learner), plain.old[result.version], atol=2e-6)
            policies = 3 if step else 2  # at first the old one is the trained one
            once, always = 3 * 3 * policies, 3 * 9 * policies * spec.algorithm.timesteps_per_sample
            assert sum(looked) == (once if zero_stage < 3 else always)


async def test_a_microbatch_of_two_histories_is_trained_behind_both(spec: LearnerSpec) -> None:
    """The first one's keys and values would stand for all."""
    async with running(spec) as learner:
        plain = PlainLearner(spec, await published(learner))
        prefixes = [sample.latents for sample in samples(9, number=2)]
        clips = [dataclasses.replace(s, window_start=3) for s in samples(0, number=4, frames=2)]
        behind = [(clip, prefixes[i // 2]) for i, clip in enumerate(clips)]
        made = [dataclasses.replace(clip, prompt="a", prefix=prefix) for clip, prefix in behind]
        whole = [
            dataclasses.replace(clip, prompt="a", latents=np.concatenate([prefix, clip.latents]))
            for clip, prefix in behind
        ]
        result = await learner.train(batch(0, made[:1], made[1:3], made[3:]))
        for name, value in plain.train(whole, SEED).items():
            assert result.metrics[name] == pytest.approx(value, rel=5e-5), name


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
async def test_a_small_adapter_takes_little_memory(spec: LearnerSpec, zero_stage: int) -> None:
    """ZeRO reserved 2 GB for the gradients of an adapter of 10 KB, on every GPU."""
    live = LiveBytes()
    async with running(changed(spec, learner={"zero_stage": zero_stage})) as learner:
        learner._thread.submit(live.count_here)
        await learner.train(batch(0, samples(0)))
    assert 0.01 < live.peak / 1e6 < 10


async def test_a_microbatch_of_two_windows_is_refused(spec: LearnerSpec) -> None:
    """One forward has one window; the loss of the other sample would fall on its context."""
    two = [dataclasses.replace(s, window_start=i % 2) for i, s in enumerate(samples(0))]
    async with running(spec) as learner:
        with pytest.raises(ValueError, match="one window"):
            await learner.train(batch(0, two))


async def test_a_penalty_above_the_threshold_sets_the_reference_after_the_step(spec: LearnerSpec) -> None:
    """A threshold that nobody looks at leaves only the age."""
    spec = changed(spec, algorithm=SELECTIVE | {"reference_max_age": 9, "reference_max_kl": 1e-9})
    async with running(spec) as learner:
        engine = learner.worker._engine
        for step in range(2):
            await learner.train(batch(step, penalised(samples(step))))
        assert torch.equal(engine.read("reference"), engine.read("default"))
        result = await learner.train(batch(2, penalised(samples(2))))
        assert (result.metrics["kl/reference_age"], result.metrics["kl_loss"]) == (0, 0)
        assert not torch.equal(engine.read("reference"), engine.read("default"))


async def test_only_samples_that_are_penalised_pass_through_the_reference(spec: LearnerSpec) -> None:
    """A third of the training time, for a number that is multiplied by zero."""
    spec = changed(spec, algorithm=SELECTIVE | {"timesteps_per_sample": 1})
    async with running(spec) as learner:
        await learner.train(batch(0, penalised(samples(0))))
        seen: list[tuple[str, int]] = []
        predict = learner.worker._predict

        def watched(policy, noisy, *rest):
            seen.append((policy, len(noisy)))
            return predict(policy, noisy, *rest)

        learner.worker._predict = watched
        all_samples = penalised(samples(1))  # the second and the fifth
        await learner.train(batch(1, all_samples[:3], all_samples[3:4], all_samples[4:]))
    assert [number for policy, number in seen if policy == "reference"] == [1, 1]
    assert [number for policy, number in seen if policy == "default"] == [3, 1, 2]


async def test_training_moves_every_adapter_tensor_and_nothing_of_the_base(spec: LearnerSpec) -> None:
    """A target module that PEFT did not match stays at its initial value for ever."""
    async with running(spec) as learner:
        model = learner.worker._engine.model
        base = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
        before = await published(learner)
        for step in range(2):  # B is zero at first, so A moves in the second step
            await learner.train(batch(step, samples(step)))
        after = await published(learner)
        assert len(after) == 2 * BLOCK_LINEARS
        assert [name for name in after if torch.equal(after[name], before[name])] == []
        assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)


@pytest.mark.parametrize(("dtype", "zero_stage"), [("float32", 2), ("bfloat16", 0)])
async def test_every_entry_moves_at_a_small_learning_rate_in_float32_only(
    spec: LearnerSpec, dtype: str, zero_stage: int
) -> None:
    """In bfloat16 a step of 1e-5 is lost beside a weight of 0.1: most of A would never be trained."""
    spec = changed(
        spec,
        model={"dtype": "bfloat16"},
        lora={"dtype": dtype},
        algorithm={"ema_decay": 0.5},
        learner={"lr": 1e-5, "adam_eps": 1e-8, "weight_decay": 0.0, "zero_stage": zero_stage},
    )
    async with running(spec) as learner:
        before = await published(learner)
        moved = {
            adapter: {name: torch.zeros_like(t) for name, t in before.items()} for adapter in ("old", "ema")
        }
        for step in range(6):  # some come back to where they were
            await learner.train(batch(step, samples(step)))
            for adapter, seen in moved.items():
                for name, tensor in (await published(learner, adapter)).items():
                    seen[name] += tensor != before[name]
        still = {adapter: sum(int((t == 0).sum()) for t in seen.values()) for adapter, seen in moved.items()}
        num_entries = sum(tensor.numel() for tensor in before.values())
    if dtype == "float32":
        assert still == {"old": 0, "ema": 0}
    else:
        assert min(still.values()) > num_entries / 4


@pytest.mark.parametrize("adapter", ["old", "ema"])
async def test_the_probe_is_the_output_of_a_receiver_with_the_published_weights(spec, adapter) -> None:
    """The learner must answer for the adapter it published last, not for the one it trains."""
    async with running(spec) as learner:
        for step in range(2):
            await learner.train(batch(step, samples(step)))
        policy = await learner.publish(adapter)
        got = await learner.probe(11)
    base = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    plain = probe_output(base, base.architecture, 11)
    merged = MergedLinears(base, policy.manifest.lora_scale)
    assert merged.load(unpack(policy.manifest, policy.buffer)) == BLOCK_LINEARS
    want = probe_output(base, base.architecture, 11)
    assert got == pytest.approx(want, abs=2e-5)
    assert max(abs(a - b) for a, b in zip(plain, want, strict=True)) > 1e-3  # the adapter matters


async def test_probing_between_steps_changes_no_step(spec: LearnerSpec) -> None:
    """The probe borrows the old adapter; a stale sample after it must still meet its own policy."""
    losses = []
    for probing in (False, True):
        async with running(spec) as learner:
            await learner.train(batch(0, samples(0)))
            stale, fresh = samples(1, stale=3)[:3], samples(1)[3:]
            if probing:
                await learner.publish("ema")
                await learner.probe(1)
            losses.append((await learner.train(batch(1, stale, fresh))).metrics)
    assert losses[0] == losses[1]


async def test_a_sample_of_an_unknown_version_is_refused_by_name(spec: LearnerSpec) -> None:
    """Training it against another behaviour policy would bias the update silently."""
    async with running(spec) as learner:
        for step in range(2):
            await learner.train(batch(step, samples(step)))
        old = [dataclasses.replace(s, policy_version=PolicyVersion(0, 0)) for s in samples(2)]
        with pytest.raises(WeightMismatch, match=r"policy 0\.0, but the learner holds 0\.1, 0\.2"):
            await learner.train(batch(2, old))


async def test_a_batch_of_another_step_is_refused(spec: LearnerSpec) -> None:
    """The same batch delivered twice must not train twice."""
    async with running(spec) as learner:
        await learner.train(batch(0, samples(0)))
        with pytest.raises(ValueError, match="step 0 arrived at step 1"):
            await learner.train(batch(0, samples(0)))


async def test_a_microbatch_of_two_versions_is_refused(spec: LearnerSpec) -> None:
    """One forward of the old policy cannot stand for two versions."""
    async with running(spec) as learner:
        await learner.train(batch(0, samples(0)))
        with pytest.raises(ValueError, match="one policy version, not from 2"):
            await learner.train(batch(1, samples(1, stale=2)))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
async def test_a_step_with_a_broken_sample_changes_nothing_and_the_third_in_a_row_stops(
    spec, zero_stage
) -> None:
    """One NaN in Adam's moments would never leave them again."""
    async with running(changed(spec, learner={"zero_stage": zero_stage})) as learner:
        await learner.train(batch(0, samples(0)))
        moments, updates = learner.worker._engine.optimizer_state()
        default = learner.worker._engine.read("default")
        for step in (1, 2):
            broken = samples(step)
            broken[3].latents[0, 0, 0, 0] = np.nan
            result = await learner.train(batch(step, broken[:3], broken[3:]))
            assert result.metrics["skipped_steps"] == step and math.isnan(result.metrics["grad_norm"])
            assert result.version.step == step + 1
        assert torch.equal(learner.worker._engine.read("default"), default)
        same, same_updates = learner.worker._engine.optimizer_state()
        assert same_updates == updates == 1
        assert all(torch.equal(same[key], moments[key]) for key in moments)
        await learner.train(batch(3, samples(3)))  # a good step resets the count
        assert not torch.equal(learner.worker._engine.read("default"), default)
        for step in (4, 5, 6):
            broken = samples(step)
            broken[0].latents[:] = np.inf
            if step < 6:
                await learner.train(batch(step, broken))
        with pytest.raises(AstrolabeError, match="3 steps in a row"):
            await learner.train(batch(6, broken))


async def test_publishing_the_same_weights_after_an_update_is_an_error(spec: LearnerSpec) -> None:
    """Training that is not connected to what actors sample with looks like a run that does not learn."""
    async with running(
        changed(spec, learner={"lr": 1e-60}, algorithm={"old_policy_decay": "none"})
    ) as learner:
        await learner.publish()
        await learner.publish()  # nothing was trained in between: no error
        await learner.train(batch(0, samples(0)))
        with pytest.raises(WeightMismatch, match="bitwise the one published 1 updates ago"):
            await learner.publish()


@pytest.mark.parametrize("num_steps", [2, 3])
async def test_a_loaded_checkpoint_continues_bitwise(
    spec: LearnerSpec, tmp_path: Path, num_steps: int
) -> None:
    """Moments, Adam's count, EMA, older behaviour versions and the noise must all come back.

    With three steps the reference, too: it was set again after the second and is now one step old.
    """
    if num_steps == 3:
        spec = changed(spec, algorithm=SELECTIVE | {"reference_max_age": 1})
    folder = tmp_path / f"checkpoint-{num_steps}"
    async with running(spec) as learner:
        for step in range(num_steps):
            await learner.train(batch(step, samples(step)))
        await learner.save(folder, {"next_number": 16, "kl_recent": [0.1 + 0.2]})
        mixed = samples(num_steps, stale=3)
        straight = await learner.train(batch(num_steps, mixed[:3], mixed[3:]))
        want = [await published(learner), await published(learner, "ema")]
    async with running(spec) as learner:
        assert await learner.load(folder) == {"next_number": 16, "kl_recent": [0.1 + 0.2]}
        assert learner.worker.version == PolicyVersion(1, num_steps)  # a new incarnation
        again = [
            dataclasses.replace(s, policy_version=PolicyVersion(1, s.policy_version.step)) for s in mixed
        ]
        resumed = await learner.train(batch(num_steps, again[:3], again[3:]))
        got = [await published(learner), await published(learner, "ema")]
    assert resumed.metrics == straight.metrics and resumed.metrics["kl_loss"] > 0
    for adapter, expected in zip(got, want, strict=True):
        assert_close(adapter, expected, atol=0)


@pytest.mark.parametrize(("saved", "loaded"), [(2, 0), (0, 3), (3, 1)])
async def test_a_checkpoint_moves_between_zero_stages(spec, tmp_path, saved, loaded) -> None:
    """Shards that only their own layout can read would tie a run to its first cluster."""
    folder = tmp_path / "checkpoint-1"
    async with running(changed(spec, learner={"zero_stage": saved})) as learner:
        await learner.train(batch(0, samples(0)))
        await learner.save(folder, {})
        await learner.train(batch(1, samples(1)))
        want = await published(learner)
    async with running(changed(spec, learner={"zero_stage": loaded})) as learner:
        await learner.load(folder)
        fresh = [dataclasses.replace(s, policy_version=PolicyVersion(1, 1)) for s in samples(1)]
        await learner.train(batch(1, fresh))
        assert_close(await published(learner), want, atol=1e-6)


async def test_peft_loads_the_saved_adapter_as_the_ema_policy(spec: LearnerSpec, tmp_path: Path) -> None:
    """The file users take away must hold the weights that were evaluated, under PEFT's names."""
    async with running(spec) as learner:
        for step in range(2):
            await learner.train(batch(step, samples(step)))
        await learner.save(tmp_path / "checkpoint-2", {})
        await learner.publish("ema")
        want = await learner.probe(5)
    base = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    architecture = base.architecture
    model = PeftModel.from_pretrained(base, str(tmp_path / "checkpoint-2" / "lora"))
    assert probe_output(model, architecture, 5) == pytest.approx(want, abs=1e-6)
    names = load_file(tmp_path / "checkpoint-2" / "lora" / "adapter_model.safetensors").keys()
    assert "base_model.model.blocks.0.self_attn.q.lora_A.weight" in names and len(names) == 2 * BLOCK_LINEARS


async def test_a_checkpoint_that_does_not_fit_is_refused(spec: LearnerSpec, tmp_path: Path) -> None:
    """Damaged file, other LoRA rank, other base: each would train on from nonsense."""
    folder = tmp_path / "checkpoint-1"
    async with running(spec) as learner:
        await learner.train(batch(0, samples(0)))
        await learner.save(folder, {})
    async with running(changed(spec, lora={"rank": 3})) as learner:
        with pytest.raises(ConfigError, match=r"lora\.rank"):
            await learner.load(folder)
    other = tmp_path / "other-model"
    shutil.copytree(spec.model.path, other)
    architecture = json.loads((other / "transformer" / "config.json").read_text())
    (other / "transformer" / "config.json").write_text(json.dumps(architecture | {"eps": 0.5}))
    async with running(changed(spec, model={"path": str(other)})) as learner:
        with pytest.raises(ConfigError, match="another base model"):
            await learner.load(folder)
        with (folder / "adapters" / "ema.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        with pytest.raises(ConfigError, match=r"adapters/ema\.safetensors is not what was written"):
            await learner.load(folder)


async def test_a_checkpoint_is_not_continued_with_another_kind_of_reference(
    spec: LearnerSpec, tmp_path: Path
) -> None:
    """The penalty would from then on pull to the base, or to an adapter of zeros."""
    lagging = changed(spec, algorithm=SELECTIVE)
    for name, saving, loading in (("start", spec, lagging), ("lagging", lagging, spec)):
        folder = tmp_path / name / "checkpoint-0"
        async with running(saving) as learner:
            await learner.save(folder, {})
        async with running(loading) as learner:
            with pytest.raises(ConfigError, match=f"Resume with --config.algorithm.kl_reference={name}"):
                await learner.load(folder)


async def test_a_checkpoint_of_the_same_name_is_replaced(spec: LearnerSpec, tmp_path: Path) -> None:
    """Whoever saves a step again must find the new one there, and nothing beside it."""
    async with running(spec) as learner:
        await learner.save(tmp_path / "checkpoint-2", {"next_number": 1})
        await learner.save(tmp_path / "checkpoint-2", {"next_number": 2})
        assert await learner.load(tmp_path / "checkpoint-2") == {"next_number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


async def test_bfloat16_latents_and_base_train_with_float32_adapters(spec: LearnerSpec) -> None:
    """bfloat16 adapters stop moving at a learning rate of 1e-5."""
    async with running(changed(spec, model={"dtype": "bfloat16"}, learner={"lr": 1e-5})) as learner:
        before = await published(learner)
        packed = [
            dataclasses.replace(
                s, latents=torch.from_numpy(s.latents).bfloat16().view(torch.int16).numpy().view(np.uint16)
            )
            for s in samples(0)
        ]
        await learner.train(batch(0, packed))
        after = await published(learner)
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert len([name for name in moved if name.endswith("lora_B")]) == BLOCK_LINEARS
    assert all(t.dtype == torch.float32 for t in after.values())
