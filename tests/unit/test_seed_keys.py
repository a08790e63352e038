"""Override keys of the first release mean here what they meant there."""

from __future__ import annotations

from pathlib import Path

import pytest

from astrolabe_ray.config.keys import all_keys
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.overrides import apply_overrides, describe
from astrolabe_ray.config.seed_keys import DEAD_KEYS, OLD_KEYS, translated
from astrolabe_ray.errors import ConfigError

LONGLIVE = load(
    f"{Path(__file__).parents[2] / 'configs' / 'nft_longlive.py'}:longlive_video_multi_reward_with_lora_init"
)


def changed_by(*overrides: str) -> set[str]:
    after = apply_overrides(LONGLIVE, translated([f"--config.{override}" for override in overrides])[0])
    return set(describe(after)) - set(describe(LONGLIVE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sample.num_image_per_prompt=12", "rollout.group_size = 12"),
        ("sample.train_batch_size=6", "rollout.batch_size = 6"),
        ("train.beta=0.01", "algorithm.kl_coef = 0.01"),
        ("beta=0.5", "algorithm.nft_beta = 0.5"),
        ("train.learning_rate=3e-5", "learner.lr = 3e-05"),
        ("num_epochs=7", "num_steps = 7"),
        ("save_freq=5", "checkpoint.every_steps = 5"),
        ("eval_freq=5", "evaluation.every_steps = 5"),
        ("num_frames=240", "model.num_latent_frames = 60"),
        ("num_frames=45", "model.num_latent_frames = 12"),
        ("eval_num_frames=240", "evaluation.num_latent_frames = 60"),
        ("streaming.eval_num_frames=240", "evaluation.num_latent_frames = 60"),
        ("streaming.window_size=12", "algorithm.train_window_frames = 12"),
        ("streaming.sample_frames=240", "model.num_latent_frames = 240"),
        ("streaming.window_selection=random", "algorithm.window_start = random"),
        ("streaming.window_selection=first", "algorithm.window_start = 0"),
        ("streaming.window_choices=[21]", "algorithm.window_start = 21"),
        ("streaming.window_choices=21", "algorithm.window_start = 21"),
        ("height=240", "model.height = 240"),
        ("width=416", "model.width = 416"),
        ("model_kwargs.local_attn_size=-1", "model.window_frames = none"),
        ("model_kwargs.local_attn_size=15", "model.window_frames = 15"),
        ("model_kwargs.sink_size=1", "model.sink_frames = 1"),
        ("model_kwargs.timestep_shift=3", "model.timestep_shift = 3.0"),
        ("denoising_step_list=[1000, 500]", "model.denoising_steps = 1000,500"),
        ("denoising_step_list=1000,500", "model.denoising_steps = 1000,500"),
        ("denoising_step_list=1000", "model.denoising_steps = 1000"),
        ("train.ema=False", "algorithm.ema_decay = 0.0"),
        ("train.max_grad_norm=0.5", "learner.max_grad_norm = 0.5"),
        ("train.adv_clip_max=2", "algorithm.adv_clip_max = 2.0"),
        ("sample.global_std=False", "algorithm.advantage_std = group"),
        ("decay_type=2", "algorithm.old_policy_decay = delayed"),
        ("reward_fn.videoalign_mq_score=0.5", "rewards.1.weight = 0.5"),
        ("mixed_precision=no", "model.dtype = float32"),
        ("resume_from=logs/x/checkpoint-30", "checkpoint.resume = logs/x/checkpoint-30"),
        ("longlive_lora_init=other.pt", "model.lora_init = other.pt"),
    ],
)
def test_an_old_key_changes_the_option_that_it_was_called_before(old: str, new: str) -> None:
    """A command line of the release would train something else, `beta` above all."""
    assert changed_by(old) == {new}


def test_the_window_of_the_release_is_the_one_that_its_command_line_asks_for() -> None:
    """A choice from a list of one was refused, though the preset of the same name makes it."""
    old = ["streaming.window_selection=random_choice", "streaming.window_choices=[21]"]
    for order in (old, old[::-1]):
        assert changed_by(*order) == {"algorithm.window_start = 21"}
    assert translated(old[:1]) == (
        [],
        [
            "streaming.window_selection=random_choice is taken for the only entry of "
            "streaming.window_choices: --config.algorithm.window_start stays as it is"
        ],
    )


@pytest.mark.parametrize("text", ["1000.5", "['a']", "True"])
def test_a_schedule_of_no_whole_numbers_says_what_one_is(text: str) -> None:
    """'int' object is not iterable."""
    with pytest.raises(ConfigError, match=r"must be a whole number or a list of them, as in \[1000,500\]"):
        translated([f"denoising_step_list={text}"])


def test_a_folder_of_prompts_sets_both_lists() -> None:
    """Evaluation would go on with the prompts of another data set."""
    assert changed_by("dataset=dataset/mine/") == {
        "data.train_prompts = dataset/mine/train.txt",
        "data.heldout_prompts = dataset/mine/test.txt",
    }


def test_every_translation_says_what_it_did_and_new_keys_pass_in_silence() -> None:
    """A silent translation looks as if the key were one of ours."""
    overrides, notes = translated(["--config.beta=0.5", "--config.rollout.group_size=8"])
    assert overrides == ["algorithm.nft_beta=0.5", "--config.rollout.group_size=8"]
    assert notes == ["beta=0.5 is taken for --config.algorithm.nft_beta=0.5"]


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("sample.guidance_scale=4.5", "distilled models sample without guidance"),
        ("sample.noise_level=0.7", "adds the noise of its schedule"),
        ("sample.num_steps=4", "length of model.denoising_steps"),
        ("train.timestep_fraction=0.99", "algorithm.timesteps_per_sample"),
        ("train.adv_mode=all", "nothing in that release read it"),
        ("use_lora=True", "only adapters are trained"),
        ("streaming.enabled=True", "algorithm.train_window_frames"),
        ("independent_first_frame=True", "nothing in that release read it"),
        ("train.gradient_accumulation_steps=16", "follows from rollout.num_groups"),
        ("model_kwargs.is_causal=True", "every model here is causal"),
        ("model_kwargs.infer_only=True", "sampling and training use one model class"),
        ("eval_batches=20", "evaluation.num_prompts says how many"),
    ],
)
def test_a_key_that_did_nothing_is_refused_with_the_reason(old: str, words: str) -> None:
    """It would be believed to do something."""
    with pytest.raises(ConfigError) as caught:
        translated([old])
    assert str(caught.value).startswith(f"'{old.partition('=')[0]}' does nothing: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "old",
    [
        "num_frames=many",
        "decay_type=5",
        "denoising_step_list=fast",
        "denoising_step_list={1000: 1}",
        "denoising_step_list=[]",
        "streaming.window_selection=middle",
        "train.adam_beta1=0.8",
        "train.ema=x",
        "streaming.window_choices=[0,21]",
    ],
)
def test_a_value_that_can_not_be_read_is_one_line(old: str) -> None:
    """A traceback of the translation."""
    with pytest.raises(ConfigError) as caught:
        translated([old])
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{old}' can't be taken for an option here: ")


def test_no_old_key_hides_one_of_ours() -> None:
    """Its option could not be set from the command line any more."""
    assert set(all_keys()) & {*OLD_KEYS, *DEAD_KEYS} == set()
    assert translated(["num_steps=3", "seed=1"]) == (["num_steps=3", "seed=1"], [])


def test_every_old_key_has_a_value_that_ends_in_an_option_of_ours() -> None:
    """An option that is renamed here would leave its old name pointing to nothing."""
    samples = ("1", "[1000]", "true", "bf16", "folder", "last")
    for key in set(OLD_KEYS) - {"train.adam_beta1", "train.adam_beta2"}:
        targets = []
        for text in samples:
            try:
                targets += translated([f"{key}={text}"])[0]
            except ConfigError:
                continue
        assert targets, key
        assert {target.partition("=")[0] for target in targets} <= set(all_keys()), key


def test_a_reward_that_is_not_in_the_preset_is_named() -> None:
    """Its weight would be dropped."""
    overrides, _ = translated(["reward_fn.aesthetic=1"])
    with pytest.raises(ConfigError, match="'aesthetic' is not one of its entries 0 \\(video_hpsv3_local\\)"):
        apply_overrides(LONGLIVE, overrides)
