"""`models list`, `check`, `download` and `export-lora`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import get_args

import typer

from astrolabe_ray.cli.sizes import bytes_in, size
from astrolabe_ray.config.base_models import BASE_MODELS, PublishedModel
from astrolabe_ray.config.reward_files import REWARD_DIR, REWARD_MODELS, RewardModel
from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import BUILTIN, files_of
from astrolabe_ray.models.hub import fetch
from astrolabe_ray.models.reward_downloads import fetch_reward
from astrolabe_ray.models.reward_files import file_problems


def list_models() -> None:
    """Print every model with its files, each there with its size or absent with its publisher."""
    for name, model in BASE_MODELS.items():
        typer.echo(f"{name}  {model.summary}; licence: {model.licence}")
        if not model.sources:
            for path in _own_paths(model):
                typer.echo(f"  {_state(path)}")
        absent = False
        for source in model.sources:
            for path in source.paths:
                absent |= not path.exists()
                typer.echo(f"  {_state(path)}  ({source.repo_id})")
        if absent:
            typer.echo(f"  fetch   python launch.py models download {name}")
    for name, reward in REWARD_MODELS.items():
        _list_reward(name, reward)


def _list_reward(name: str, reward: RewardModel) -> None:
    typer.echo(f"{name}  for rewards: {reward.summary}; licence: {BY_NAME[name].licence}")
    paths = [path for source in reward.sources for path in source.paths]
    for path in paths:
        typer.echo(f"  there   {path}  {size(bytes_in(path))}" if path.exists() else f"  absent  {path}")
    if not all(path.exists() for path in paths):
        typer.echo(f"  fetch   python launch.py models download {name}")


def check_model(name: str) -> None:
    """Print what every file holds. Raises ConfigError listing what is absent or not as it should be."""
    if name in REWARD_MODELS:
        _check_reward(name)
        return
    model = _published(name)
    lora = model.lora if model.lora is not None and Path(model.lora).exists() else None
    files = files_of(model.model_config(lora_init=lora))
    from astrolabe_ray.models.inspection import inspect  # loads torch

    wrong = []
    for part, path, look in inspect(files):
        try:
            typer.echo(f"{part:>12}  {path}  {size(bytes_in(path))}: {look()}")
        except ConfigError as error:
            wrong.append(str(error))
    if lora != model.lora:
        typer.echo(f"{'lora':>12}  {model.lora}  absent; the model is of use without it, too")
    if wrong:
        raise ConfigError("\n".join(wrong))
    typer.echo(f"{name} can be used: its names and shapes are right. Values were not read.")


def _check_reward(name: str) -> None:
    card = BY_NAME[name]
    problems = file_problems(card, Path(REWARD_DIR), card.options)
    if problems:
        raise ConfigError("\n".join(problems))
    typer.echo(f"{name}: the files are there, prompt texts are the known ones. Weights were not read.")


def download_model(name: str) -> None:
    """Fetch what is absent. Raises ConfigError if a source can't be reached or does not have it."""
    if name in REWARD_MODELS:
        fetch_reward(name, REWARD_MODELS[name])
        typer.echo(f"Everything is there: {', '.join(BY_NAME[name].keys)} can be used.")
        return
    model = _published(name)
    if model.config.path in BUILTIN:
        raise ConfigError(f"{name} comes with this repository; there is nothing to download")
    if not model.sources:
        raise ConfigError(f"{name} has no publisher; put its files where `models list` shows them")
    for source in model.sources:
        typer.echo(f"{source.repo_id} -> {source.folder}")
        fetch(source)
    typer.echo(f"Everything is there. To look into it: python launch.py models check {name}")


def export_lora(lora: Path, out: Path, form: str) -> None:
    """Write the LoRA in `lora` into the folder `out`. Raises ConfigError if it can't be read or written."""
    from astrolabe_ray.models.lora_files import LoraFormat, read_lora, write_lora  # loads torch

    formats = {choice: choice for choice in get_args(LoraFormat)}
    if form not in formats:
        raise ConfigError(f"there is no format '{form}'; there are: {', '.join(formats)}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")
    read = read_lora(lora)
    out.mkdir(parents=True, exist_ok=True)
    write_lora(read, out, formats[form])
    typer.echo(f"{out}: rank {read.rank}, alpha {read.alpha:g}, {len(read.tensors)} tensors, for {form}")


def _published(name: str) -> PublishedModel:
    if name not in BASE_MODELS:
        known = [*BASE_MODELS, *REWARD_MODELS]
        meant = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{meant[0]}'? " if meant else ""
        raise ConfigError(f"there is no model '{name}'; {hint}There are: {', '.join(known)}")
    return BASE_MODELS[name]


def _own_paths(model: PublishedModel) -> list[Path]:
    """Where the files of a model lie that has no publisher."""
    files = [name for name in (model.config.checkpoint, model.lora) if name is not None]
    return [BUILTIN.get(model.config.path, Path(model.config.path)), *map(Path, files)]


def _state(path: Path) -> str:
    return f"there   {path}  {size(bytes_in(path))}" if path.exists() else f"absent  {path}"
