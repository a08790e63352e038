"""What tells that the files of a model are still those that made a video. No torch here.

A file counts by its path, size and time of change; one of the embedded model by its content, as a copy of
the repository has other paths and times and the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from astrolabe_ray.models.files import (
    BUILTIN,
    LORA_CONFIG,
    TEXT_ENCODER_STEM,
    TRANSFORMER_STEM,
    VAE_STEM,
    ModelFiles,
    shards,
)

Stamp = list[str | int]


def model_stamps(files: ModelFiles) -> list[Stamp]:
    """A stamp for each file that the model is read from."""
    embedded = files.root in BUILTIN.values()
    return [
        _content(path, files.root) if embedded and path.is_relative_to(files.root) else _state(path)
        for path in model_paths(files)
    ]


def file_stamps(path: Path) -> list[Stamp]:
    """A stamp of a file, or of each file in a folder."""
    return [_state(file) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def lora_stamps(path: Path) -> list[Stamp]:
    """Those of its folder or file, and of the settings beside a file, which say how strong it is."""
    settings = path.parent / LORA_CONFIG
    return file_stamps(path) + (file_stamps(settings) if path.is_file() and settings.is_file() else [])


def model_paths(files: ModelFiles) -> list[Path]:
    """Every file that the model is read from, each once: sizes, weights with all their shards, tokenizer."""
    parts = (
        (files.transformer, TRANSFORMER_STEM),
        (files.vae, VAE_STEM),
        (files.text_encoder, TEXT_ENCODER_STEM),
    )
    paths = [files.architecture]
    for part, stem in parts:
        paths += _part(part, stem)
    paths += [path for path in sorted(files.tokenizer.iterdir()) if path.is_file()]
    return list(dict.fromkeys(paths))


def _part(path: Path, stem: str) -> Iterator[Path]:
    """A checkpoint file, or the sizes and weights in a folder."""
    if path.is_file():
        yield path
        return
    if (path / "config.json").is_file():
        yield path / "config.json"
    yield from shards(path, stem)


def _state(path: Path) -> Stamp:
    state = path.stat()
    return [str(path), state.st_size, state.st_mtime_ns]


def _content(path: Path, root: Path) -> Stamp:
    return [str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()]
