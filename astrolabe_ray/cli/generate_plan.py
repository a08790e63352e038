"""What `generate` is to do, checked as far as that goes without torch and Ray."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from astrolabe_ray.cli.inputs import check_rewards
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.base_models import BASE_MODELS, PublishedModel
from astrolabe_ray.config.generate_options import ALL_FRAMES, GenerateOptions
from astrolabe_ray.config.schema import ModelConfig, RewardConfig
from astrolabe_ray.config.validation import as_config_error
from astrolabe_ray.data.group_sampler import rollout_seed
from astrolabe_ray.data.prompts import load_prompts
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import absolute, anywhere, files_of, find_lora
from astrolabe_ray.models.stamps import Stamp, file_stamps, lora_stamps, model_stamps
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.video_folder import VideoFolder
from astrolabe_ray.video_tasks import FRAMES_PER_LATENT_FRAME, VideoModelSpec, VideoPlan, VideoTask

LONG_VIDEOS: dict[str, dict[str, Any]] = {"tiny_sprites": {"rope": "relative"}}
"""Where a base model makes better long videos than with the settings it is trained with. The last four of
45 seconds, 24 held-out captions: text alignment 0.852 with relative positions, 0.808 with absolute ones."""
PIXELS_PER_TOKEN = 16
NO_LORA = "none"
INITIAL_SUFFIXES = (".mp4", ".safetensors")


@dataclass(frozen=True)
class GeneratePlan:
    """Everything that is to be made, and with what."""

    spec: VideoModelSpec  # without views: those are the scorers'
    tasks: tuple[VideoTask, ...]
    rewards: tuple[RewardConfig, ...]
    num_gpus: float  # of each worker


def plan_generate(options: GenerateOptions, wiring: Wiring) -> GeneratePlan:
    """Raises ConfigError for anything that can't work."""
    prompts = read_prompts(options)
    if not options.output_dir:
        raise ConfigError("--output-dir is empty; name a folder, or write --output-dir . for this one")
    base = _base_model(options.base_model)
    model = model_config(options, base)
    check_sampling(model)
    files = files_of(model)
    lora = chosen_lora(options, base)
    initial = _initial(options.initial_video)
    rewards = tuple(RewardConfig(key=key) for key in options.rewards)
    check_rewards(rewards, wiring.reward_problems)
    if options.stream and not options.save_videos:
        raise ConfigError("--stream writes videos and --no-save-videos writes none; leave one of them out")
    plans = [_video_plan(prompt, number, options, model, wiring) for number, prompt in enumerate(prompts)]
    if rewards and any(len(plan.scenes) > 1 for plan in plans):
        raise ConfigError("--rewards can't judge videos with several scenes: a score is of one prompt")
    num_gpus = _num_gpus(options)
    spec = VideoModelSpec(
        anywhere(model),  # workers start in other folders
        lora=lora,
        initial=initial,
        device="cuda" if num_gpus else "cpu",
        num_threads=max(1, int(options.cpus_per_worker)),
        low_memory=options.low_memory,
        with_files=options.save_videos,
        is_stream=options.stream,
        with_sheets=options.contact_sheets,
    )
    stamps = model_stamps(files)
    stamps += lora_stamps(Path(lora)) if lora is not None else []
    stamps += file_stamps(Path(initial)) if initial is not None else []
    tasks = tuple(
        _task(prompt, number, sample, plan, options, spec.model, stamps)
        for number, (prompt, plan) in enumerate(zip(prompts, plans, strict=True))
        for sample in range(options.samples_per_prompt)
    )
    if initial is not None and options.save_videos:
        _require_kept(Path(initial), tasks, options)
    return GeneratePlan(spec, tasks, rewards, num_gpus)


def read_prompts(options: GenerateOptions) -> list[str]:
    """Raises ConfigError unless there is exactly one source and it holds a prompt."""
    if (options.prompt is None) == (options.prompt_file is None):
        how_many = "no prompt" if options.prompt is None else "two sources of prompts"
        raise ConfigError(f"{how_many}: give either --prompt TEXT or --prompt-file FILE")
    if options.prompt_file is not None:
        return load_prompts(options.prompt_file)[: options.num_prompts]
    assert options.prompt is not None
    if options.num_prompts is not None:
        raise ConfigError("--num-prompts is how many of --prompt-file are made, and --prompt is one")
    if not options.prompt.strip():
        raise ConfigError("--prompt is empty; describe what the video shows")
    _require_unicode(options.prompt)
    return [" ".join(options.prompt.split())]


def _require_unicode(prompt: str) -> None:
    """Raises ConfigError for a byte of the command line that is not UTF-8: half a pair of surrogates."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"--prompt holds no UTF-8 at character {error.start + 1}: {prompt[error.start]!a}; type it "
            "anew, or put it into a UTF-8 file and name that as --prompt-file"
        ) from None


def model_config(options: GenerateOptions, base: PublishedModel) -> ModelConfig:
    """The base model's section with the options that were given."""
    changes: dict[str, Any] = dict(LONG_VIDEOS.get(options.base_model, {}))
    if options.checkpoint is not None:
        changes["checkpoint_key"] = None  # the base model's belongs to its own file
    for name in ModelConfig.model_fields:
        value = getattr(options, name, None)
        if value is not None:
            changes[name] = value
    if options.model_path is not None:
        changes["path"] = options.model_path
    if options.window_frames == ALL_FRAMES:
        changes["window_frames"] = None
    if not options.warp:
        changes["timestep_shift"] = 1.0  # the identity
    try:
        return base.model_config(**changes)
    except ValidationError as error:
        raise as_config_error(error, "generate") from None


def check_sampling(model: ModelConfig) -> None:
    """Raises ConfigError for a size that patches don't tile, a window too small, a schedule that is none."""
    for name, size in (("height", model.height), ("width", model.width)):
        if size % PIXELS_PER_TOKEN:
            below = size // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN
            near = f"{below} or {below + PIXELS_PER_TOKEN}" if below else f"{PIXELS_PER_TOKEN}"
            raise ConfigError(
                f"--{name} {size} is not a multiple of 16 (8 from the VAE, 2 from the patches); try {near}"
            )
    ContextRule(model.chunk_frames, model.window_frames, model.sink_frames, model.rope)
    steps = model.denoising_steps
    if not steps or list(steps) != sorted(set(steps), reverse=True) or not 0 < steps[-1] <= steps[0] <= 1000:
        raise ConfigError(
            f"--denoising-steps {','.join(map(str, steps))} must fall from at most 1000 to above 0, each "
            "only once, for example 1000,750,500,250"
        )


def num_chunks(options: GenerateOptions, model: ModelConfig) -> int | None:
    """The length that was asked for, as the nearest whole number of chunks; None if none was.

    T latent frames are 4 (T - 1) + 1 frames, or 4 T behind others. Raises ConfigError when it is given twice.
    """
    if options.num_frames is not None and options.seconds is not None:
        raise ConfigError("--num-frames and --seconds both give the length; leave one of them out")
    if options.num_frames is not None:
        num_spared = 3 if options.initial_video is None else 0
        latent_frames = (options.num_frames + num_spared) / FRAMES_PER_LATENT_FRAME
    elif options.seconds is not None:
        latent_frames = options.seconds * model.fps / FRAMES_PER_LATENT_FRAME
    else:
        return None
    return max(1, math.floor(latent_frames / model.chunk_frames + 0.5))


def _video_plan(
    prompt: str, number: int, options: GenerateOptions, model: ModelConfig, wiring: Wiring
) -> VideoPlan:
    try:
        return wiring.plan_scenes(prompt, model, num_chunks(options, model))
    except ConfigError as error:
        if options.prompt_file is None:
            raise
        raise ConfigError(f"{options.prompt_file}, prompt {number + 1}: {error}") from None


def _task(
    prompt: str,
    number: int,
    sample: int,
    plan: VideoPlan,
    options: GenerateOptions,
    model: ModelConfig,
    stamps: Sequence[Stamp],
) -> VideoTask:
    seed = rollout_seed(options.seed, 0, number, sample)
    task = VideoTask(number, sample, prompt, seed, plan, fingerprint="")
    return replace(task, fingerprint=_fingerprint(task, options, model, stamps))


def _fingerprint(
    task: VideoTask, options: GenerateOptions, model: ModelConfig, stamps: Sequence[Stamp]
) -> str:
    """Hash of all that decides what a video is: options, prompt, and the `stamps` of every file."""
    facts = [
        model.model_dump(mode="json"),
        stamps,
        [task.prompt, task.seed, task.plan.num_chunks],
        [[scene.prompt, scene.start_chunk, scene.is_cut] for scene in task.plan.scenes],
        [options.save_videos, sorted(options.rewards)],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _base_model(name: str) -> PublishedModel:
    if name not in BASE_MODELS:
        raise ConfigError(f"there is no base model '{name}'; {_suggestion(name, BASE_MODELS)}")
    return BASE_MODELS[name]


def _suggestion(name: str, known: Collection[str]) -> str:
    meant: Sequence[str] = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean '{meant[0]}'? " if meant else "") + f"There are: {', '.join(sorted(known))}"


def chosen_lora(options: GenerateOptions, base: PublishedModel) -> str | None:
    """Folder of the LoRA that was named, else of the base model's own if its own checkpoint is used.

    The published LoRA was trained on the published checkpoint; another checkpoint stands alone. Raises
    ConfigError for a LoRA that is not there.
    """
    named = _own_lora(options, base) if options.lora is None else options.lora
    if named is None or named == NO_LORA:
        return None
    if not named:
        raise ConfigError(f"--lora is empty; name a folder or a file, or write --lora {NO_LORA}")
    return str(find_lora(absolute(named)))


def _own_lora(options: GenerateOptions, base: PublishedModel) -> str | None:
    is_published = options.checkpoint is None or _same_file(options.checkpoint, base.config.checkpoint)
    if base.lora is None or not is_published:
        return None
    if not Path(base.lora).exists():
        raise ConfigError(
            f"{options.base_model} is sampled with the LoRA {base.lora}, which is not here: fetch it with "
            f"`python launch.py models download {options.base_model}`, or write --lora {NO_LORA}"
        )
    return base.lora


def _same_file(first: str, second: str | None) -> bool:
    return second is not None and absolute(first) == absolute(second)


def _initial(file: str | None) -> str | None:
    if file is None:
        return None
    path = absolute(file)
    if path.suffix not in INITIAL_SUFFIXES:
        raise ConfigError(f"--initial-video {file} must be a video (.mp4) or latents (.safetensors)")
    if not path.is_file():
        raise ConfigError(f"--initial-video {file} does not exist")
    return str(path)


def _require_kept(initial: Path, tasks: Sequence[VideoTask], options: GenerateOptions) -> None:
    """Raises ConfigError if one of the videos would take the place of the one that all go on from."""
    folder = VideoFolder(absolute(options.output_dir), options.samples_per_prompt)
    if any(folder.video(task).resolve() == initial for task in tasks):
        raise ConfigError(
            f"--initial-video {options.initial_video} would be written over: it is where this command puts a "
            "video of its own; give another --output-dir"
        )


def _num_gpus(options: GenerateOptions) -> float:
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    return 0 if options.base_model == "tiny_sprites" else 1
