"""Every option of `generate` with its default and range, and the other names that options may go by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from astrolabe_ray.config.schema import Section
from astrolabe_ray.config.validation import as_config_error
from astrolabe_ray.errors import ConfigError

MAX_SECONDS = 86_400
"""Of a video: more is a slip of the finger, and would only show when the disk is full."""
MAX_SIDE, MAX_FPS, MAX_CHUNK_FRAMES = 8192, 240, 240
"""Pixels, frames a second, latent frames: more than any model makes."""


class GenerateOptions(Section):
    """What to make, with which model, by whom. None: as the base model says."""

    prompt: str | None = None
    prompt_file: str | None = None
    num_prompts: int | None = Field(default=None, gt=0)
    samples_per_prompt: int = Field(default=1, gt=0, le=100)
    seed: int = Field(default=0, ge=0)

    base_model: str = "tiny_sprites"
    model_path: str | None = None
    checkpoint: str | None = None
    checkpoint_key: str | None = None
    lora: str | None = None

    num_frames: int | None = Field(default=None, gt=0, le=60 * MAX_SECONDS)
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS)
    height: int | None = Field(default=None, gt=0, le=MAX_SIDE)
    width: int | None = Field(default=None, gt=0, le=MAX_SIDE)
    fps: int | None = Field(default=None, gt=0, le=MAX_FPS)
    initial_video: str | None = None

    denoising_steps: tuple[int, ...] | None = None
    timestep_shift: float | None = Field(default=None, gt=0)
    warp: bool = True
    chunk_frames: int | None = Field(default=None, gt=0, le=MAX_CHUNK_FRAMES)
    window_frames: int | None = Field(default=None, ge=-1)
    sink_frames: int | None = Field(default=None, ge=0)
    rope: Literal["absolute", "relative"] | None = None
    context_timestep: float | None = Field(default=None, ge=0, lt=1000)
    dtype: Literal["float32", "bfloat16"] | None = None
    attention: Literal["auto", "sdpa", "flash2", "flash3"] | None = None

    output_dir: str = "logs/generate"
    save_videos: bool = True
    stream: bool = False
    contact_sheets: bool = True
    rewards: tuple[str, ...] = ()

    batch_size: int = Field(default=1, gt=0)
    workers: int = Field(default=1, gt=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    chunk_timeout_s: float = Field(default=900, gt=0)
    low_memory: bool = False
    local: bool = False


OTHER_NAMES = {
    "lora-path": "lora",
    "max-samples": "num-prompts",
    "num-frame-per-block": "chunk-frames",
    "local-attn-size": "window-frames",
    "sink-size": "sink-frames",
    "mixed-precision": "dtype",
    "yaml-config": "config-file",
    "reward-models": "rewards",
    "no-save-video": "no-save-videos",
    "checkpoint-path": "checkpoint",
    "context-noise": "context-timestep",
    "denoising-step-list": "denoising-steps",
    "warp-denoising-step": "warp",
}
"""Names that other programs give to options of ours. `_` and `-` are the same in a name."""
REFUSED = {
    "guidance-scale": "the models are distilled and sample without guidance, so a scale would do nothing",
    "negative-prompt": "the models are distilled and sample without guidance, so it would do nothing",
    "infer-only": "this command does nothing but infer",
    "is-causal": "every model here is causal",
}
"""Options of other programs that would change nothing, and why."""
GROUP = "model_kwargs"
"""Under which files of other programs have some of their options."""
OTHER_DTYPES = {"bf16": "bfloat16", "no": "float32", "fp32": "float32"}
ALTERNATIVES = {
    "prompt": ("prompt_file", "num_prompts"),
    "prompt_file": ("prompt",),
    "num_frames": ("seconds",),
    "seconds": ("num_frames",),
    "checkpoint": ("checkpoint_key",),
    "stream": ("save_videos",),
}
"""What an option that is typed takes the place of in a file."""
ALL_FRAMES = -1
"""As `window_frames`: every earlier frame is seen."""


def option_name(written: str) -> str:
    """Our name of an option, with hyphens. Raises ConfigError for one that does nothing."""
    name = written.lstrip("-").replace("_", "-")
    if name in REFUSED:
        raise ConfigError(f"--{name} is not an option of generate: {REFUSED[name]}; leave it out")
    return OTHER_NAMES.get(name, name)


def generate_options(typed: Mapping[str, Any], config_file: Path | None = None) -> GenerateOptions:
    """The options of a file, replaced by what was `typed` (values that are None were not).

    Raises ConfigError for a file that can't be read, an unknown name and a value out of range.
    """
    values = _read(config_file) if config_file is not None else {}
    given = {name: value for name, value in typed.items() if value is not None}
    replaced = {other for name in given for other in ALTERNATIVES.get(name, ())}
    values = {name: value for name, value in values.items() if name not in replaced} | given
    return _checked({name: _parsed(name, value) for name, value in values.items()})


def _checked(values: Mapping[str, Any]) -> GenerateOptions:
    try:
        return GenerateOptions.model_validate(values)
    except ValidationError as error:
        raise as_config_error(error, "generate") from None


def _read(file: Path) -> dict[str, Any]:
    """Options of a YAML or JSON file by our names, with underscores."""
    import yaml

    try:
        content = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except (
        OSError,
        UnicodeDecodeError,
        RuntimeError,
        yaml.YAMLError,
    ) as reason:  # RuntimeError: home of nobody
        raise ConfigError(f"can't read the options in {file}: {' '.join(str(reason).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no options; write one a line, for example seed: 3")
    known = GenerateOptions.model_fields
    options = {}
    group = content.pop(GROUP, None) or {}
    if not isinstance(group, dict):
        raise ConfigError(f"{file}: {GROUP} holds no options; leave it out, or write one a line below it")
    for written, value in (*content.items(), *group.items()):
        name = option_name(str(written)).replace("-", "_")
        if name not in known:
            meant = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{meant[0]}'?" if meant else f"there is {', '.join(known)}"
            raise ConfigError(f"{file}: there is no option '{written}'; {hint}")
        earlier = options.get(name)
        if value is None and earlier is not None:
            continue
        if earlier is not None and not _is_same(name, earlier, value):
            raise ConfigError(f"{file} has '{name}' twice: {earlier} and {value}; leave one out")
        options[name] = value
    return options


def _is_same(name: str, one: Any, other: Any) -> bool:
    """Whether two ways to write an option mean the same; what can't be used is left to the check of all."""
    with suppress(ConfigError):
        one, other = _parsed(name, one), _parsed(name, other)
    return one == other or str(one) == str(other)


def _parsed(name: str, value: Any) -> Any:
    """Lists may be written with commas, and dtypes, the whole window and all prompts in the words of other
    programs.
    """
    if name in ("denoising_steps", "rewards") and isinstance(value, str):
        return _list(name, value)
    if name == "rewards" and isinstance(value, Mapping):
        raise ConfigError(f"rewards {dict(value)}: write a list of the keys, without weights")
    if name == "dtype" and isinstance(value, str):
        if value == "fp16":
            raise ConfigError("--dtype fp16 overflows in these models; use bfloat16 or float32")
        return OTHER_DTYPES.get(value, value)
    if name == "dtype" and value is False:  # what YAML makes of `no`
        return OTHER_DTYPES["no"]
    if name == "window_frames" and value == "all":
        return ALL_FRAMES
    if name == "num_prompts" and str(value) == "-1":
        return None
    return value


def _list(name: str, text: str) -> list[Any]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    if name == "rewards":
        if text.lstrip().startswith("{"):
            raise ConfigError(f"--rewards {text}: write the keys with commas, without weights")
        return items
    if not all(item.isdecimal() for item in items):
        raise ConfigError(f"--denoising-steps {text} is no list of numbers like 1000,750,500,250")
    return [int(item) for item in items]
