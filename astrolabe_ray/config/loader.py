"""Presets are functions in plain Python files that return a RunConfig; files are loaded by path.

load("configs/nft_tiny.py:tiny_sprites", ["--config.num_steps=3"])
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType

from pydantic import ValidationError

from astrolabe_ray.config.compat import with_compat
from astrolabe_ray.config.overrides import apply_overrides
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.validation import as_config_error
from astrolabe_ray.errors import ConfigError

Preset = Callable[[], RunConfig]

INSTALLED_CONFIGS = Path(sys.prefix) / "share" / "astrolabe-ray" / "configs"
"""Where an installed wheel puts the shipped config files."""


def load(spec: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config that `FILE.py:PRESET` names, with `overrides` applied.

    Raises ConfigError for a missing file, an unknown preset, an unknown key or a value out of range.
    """
    file, colon, name = spec.rpartition(":")
    if not colon:
        file, name = spec, ""
    presets = presets_in(find_config_file(file))
    if name not in presets:
        raise ConfigError(_unknown_preset(file, name, presets))
    try:
        config = presets[name]()
    except ValidationError as error:
        raise as_config_error(error, spec) from None
    return apply_overrides(config, with_compat(config, overrides))


def find_config_file(file: str) -> Path:
    """`file` as it is, or among the shipped configs of an installed wheel."""
    for path in (Path(file), INSTALLED_CONFIGS.parent / file):
        if path.is_file():
            return path.resolve()
    folder = Path(file).parent
    there = sorted(path.name for path in folder.glob("*.py")) if folder.is_dir() else []
    meant = difflib.get_close_matches(Path(file).name, there, n=1)
    if meant:
        hint = f"did you mean {folder / meant[0]}?"
    else:
        hint = f"{folder} has: {', '.join(there)}" if there else f"current folder: {Path.cwd()}"
    raise ConfigError(f"no config file {file}; {hint}")


def presets_in(path: Path) -> dict[str, Preset]:
    """The presets of a config file: public functions without arguments that return a RunConfig."""
    module = _run_file(path)
    own = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    return {name: value for name, value in own.items() if _is_preset(value, module.__name__)}


def _is_preset(function: FunctionType, module: str) -> bool:
    """True for a public function of `module`, not an imported one, declared as `() -> RunConfig`."""
    if function.__module__ != module or function.__name__.startswith("_"):
        return False
    hints = typing.get_type_hints(function)
    return hints.pop("return", None) is RunConfig and not hints


def _run_file(path: Path) -> ModuleType:
    """Run a config file by path; it is never importable as a package."""
    spec = importlib.util.spec_from_file_location(f"astrolabe_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValidationError as error:
        raise as_config_error(error, str(path)) from None
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from None
    except ImportError as error:
        raise ConfigError(f"{path} imports what is not there: {error}") from None
    return module


def _unknown_preset(file: str, name: str, presets: dict[str, Preset]) -> str:
    available = ", ".join(sorted(presets)) or "no function that is declared to return a RunConfig"
    if not name:
        return f"'{file}' names a file but no preset; write {file}:NAME. It has: {available}"
    meant = difflib.get_close_matches(name, presets, n=1)
    hint = f"did you mean '{meant[0]}'? " if meant else ""
    return f"{file} has no preset '{name}'; {hint}It has: {available}"
