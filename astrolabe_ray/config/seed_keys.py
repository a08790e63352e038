"""Override keys of the first Astrolabe release, taken for what they are called here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from astrolabe_ray.config.overrides import PREFIX
from astrolabe_ray.config.plan import FRAMES_PER_LATENT_FRAME
from astrolabe_ray.errors import ConfigError

Translation = Callable[[str], list[str]]
"""The text of a value -> overrides `KEY=VALUE`. Raises ValueError for a text that it can't read."""


def _named(key: str) -> Translation:
    return lambda text: [f"{key}={text}"]


def _chosen(key: str, values: dict[str, str]) -> Translation:
    """For options whose values have other names here."""

    def translate(text: str) -> list[str]:
        word = text.strip().lower()
        if word not in values:
            raise ValueError(f"must be one of {', '.join(values)}")
        return [f"{key}={values[word]}"]

    return translate


def _latent_frames(key: str) -> Translation:
    """Of a number of pixel frames."""
    return lambda text: [f"{key}={(int(text) - 1) // FRAMES_PER_LATENT_FRAME + 1}"]


def _numbers(text: str) -> list[int]:
    """A list, numbers with commas between them, or one number."""
    found = ast.literal_eval(text)
    numbers = list(found) if isinstance(found, (list, tuple)) else [found]
    if not numbers or not all(type(number) is int for number in numbers):
        raise ValueError("must be a whole number or a list of them, as in [1000,500]")
    return numbers


def _only_start(text: str) -> list[str]:
    starts = _numbers(text)
    if len(starts) != 1:
        raise ValueError(
            f"a window has one start, or one drawn from all: {PREFIX}algorithm.window_start=random"
        )
    return [f"algorithm.window_start={starts[0]}"]


def _window(text: str) -> list[str]:
    return [f"model.window_frames={'none' if int(text) == -1 else int(text)}"]


def _steps(text: str) -> list[str]:
    return [f"model.denoising_steps={','.join(map(str, _numbers(text)))}"]


def _window_start(text: str) -> list[str]:
    """A choice from a list keeps the start that there is: its only entry, which has a key of its own."""
    return [] if text.strip().lower() == CHOSEN else _window_rule(text)


def _prompts(text: str) -> list[str]:
    folder = text.rstrip("/")
    return [f"data.train_prompts={folder}/train.txt", f"data.heldout_prompts={folder}/test.txt"]


def _both_betas(text: str) -> list[str]:
    raise ValueError(f"write both: {PREFIX}learner.adam_betas=BETA1,BETA2")


CHOSEN = "random_choice"
_window_rule = _chosen("algorithm.window_start", {"last": "last", "random": "random", "first": "0"})

OLD_KEYS: dict[str, Translation] = {
    "run_name": _named("name"),
    "num_epochs": _named("num_steps"),
    "beta": _named("algorithm.nft_beta"),
    "decay_type": _chosen("algorithm.old_policy_decay", {"0": "none", "1": "linear", "2": "delayed"}),
    "use_select_kl": _chosen("algorithm.kl_samples", {"true": "disagreeing", "false": "all"}),
    "main_reward": _named("algorithm.main_reward"),
    "save_freq": _named("checkpoint.every_steps"),
    "save_dir": _named("logging.log_dir"),
    "resume_from": _named("checkpoint.resume"),
    "eval_freq": _named("evaluation.every_steps"),
    "dataset": _prompts,
    "num_frames": _latent_frames("model.num_latent_frames"),
    "eval_num_frames": _latent_frames("evaluation.num_latent_frames"),
    "streaming.eval_num_frames": _latent_frames("evaluation.num_latent_frames"),
    "streaming.window_size": _named("algorithm.train_window_frames"),
    "streaming.sample_frames": _named("model.num_latent_frames"),
    "streaming.window_selection": _window_start,
    "streaming.window_choices": _only_start,
    "height": _named("model.height"),
    "width": _named("model.width"),
    "checkpoint_path": _named("model.checkpoint"),
    "longlive_lora_init": _named("model.lora_init"),
    "num_frame_per_block": _named("model.chunk_frames"),
    "denoising_step_list": _steps,
    "context_noise": _named("model.context_timestep"),
    "mixed_precision": _chosen("model.dtype", {"bf16": "bfloat16", "no": "float32"}),
    "model_kwargs.timestep_shift": _named("model.timestep_shift"),
    "model_kwargs.local_attn_size": _window,
    "model_kwargs.sink_size": _named("model.sink_frames"),
    "sample.num_image_per_prompt": _named("rollout.group_size"),
    "sample.train_batch_size": _named("rollout.batch_size"),
    "sample.num_groups": _named("rollout.num_groups"),
    "sample.global_std": _chosen("algorithm.advantage_std", {"true": "global", "false": "group"}),
    "train.beta": _named("algorithm.kl_coef"),
    "train.learning_rate": _named("learner.lr"),
    "train.batch_size": _named("learner.micro_batch_size"),
    "train.adam_beta1": _both_betas,
    "train.adam_beta2": _both_betas,
    "train.adam_epsilon": _named("learner.adam_eps"),
    "train.adam_weight_decay": _named("learner.weight_decay"),
    "train.max_grad_norm": _named("learner.max_grad_norm"),
    "train.adv_clip_max": _named("algorithm.adv_clip_max"),
    "train.ema": _chosen("algorithm.ema_decay", {"true": "0.9", "false": "0"}),
    "train.gradient_checkpointing": _named("learner.gradient_checkpointing"),
}
"""Old key -> what it becomes."""

OLD_REWARD_PREFIX = "reward_fn."

_UNREAD = "nothing in that release read it"
_SPLIT = "it follows from rollout.num_groups, rollout.group_size and the number of ranks"
DEAD_KEYS: dict[str, str] = {
    "guidance_scale": "distilled models sample without guidance",
    "noise_level": "sampling adds the noise of its schedule and no other",
    "solver": "the few-step schedule is its own solver",
    "deterministic": "every rollout owns its seed",
    "sample.num_steps": "the number of steps is the length of model.denoising_steps",
    "eval_num_steps": "evaluation samples as training does",
    "timestep_fraction": "algorithm.timesteps_per_sample says how many timesteps a sample trains on",
    "adv_mode": f"{_UNREAD}; algorithm.advantage_mode does what DiffusionNFT's did",
    "causal": "every model here is causal",
    "is_causal": "every model here is causal",
    "infer_only": "sampling and training use one model class",
    "eval_batches": "evaluation.num_prompts says how many prompts are evaluated",
    "independent_first_frame": _UNREAD,
    "resolution": "model.height and model.width say it",
    "use_lora": "only adapters are trained",
    "lora_path": "model.lora_init names a LoRA to start from",
    "streaming.enabled": "algorithm.train_window_frames says whether windows are trained on",
    "config_path": _UNREAD,
    "num_batches_per_epoch": _SPLIT,
    "gradient_accumulation_steps": _SPLIT,
    "gradient_step_per_epoch": "a step of the optimizer is a step of the run",
    "num_inner_epochs": "a batch is trained on once",
    "allow_tf32": "the base is frozen in model.dtype",
    "test_batch_size": "evaluation uses rollout.batch_size",
    "warp_denoising_step": "the schedule is always warped, by model.timestep_shift",
}
"""Last part of an old key (or all of it) -> why it does nothing here."""
_SECTIONS = ("sample", "train", "model_kwargs")
"""Of old keys; the part behind the dot says what is meant."""


def translated(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """`overrides` with old keys replaced, and a note for each one: what it was taken for.

    Keys of this schema pass unchanged. Raises ConfigError for an old key that does nothing, and for a
    value that can't be read.
    """
    found: list[str] = []
    notes: list[str] = []
    for override in overrides:
        key, equals, text = override.removeprefix(PREFIX).partition("=")
        new = _translated(key, text) if equals else None
        found += [override] if new is None else new
        if new is not None:
            notes.append(f"{key}={text} is taken for {_taken_for(new)}")
    return found, notes


def _taken_for(overrides: Sequence[str]) -> str:
    if not overrides:
        return f"the only entry of streaming.window_choices: {PREFIX}algorithm.window_start stays as it is"
    return " ".join(PREFIX + line for line in overrides)


def _translated(key: str, text: str) -> list[str] | None:
    """None for a key that is no old one."""
    if key.startswith(OLD_REWARD_PREFIX):
        return [f"rewards.{key.removeprefix(OLD_REWARD_PREFIX)}.weight={text}"]
    section, _, name = key.partition(".")
    reason = DEAD_KEYS.get(key) or (DEAD_KEYS.get(name) if section in _SECTIONS else None)
    if reason is not None:
        raise ConfigError(f"'{key}' does nothing: {reason}. Leave it out.")
    if key not in OLD_KEYS:
        return None
    try:
        return OLD_KEYS[key](text)
    except (ValueError, SyntaxError, TypeError) as problem:
        raise ConfigError(f"'{key}={text}' can't be taken for an option here: {problem}") from None
