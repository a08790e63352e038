"""Pydantic's findings as one plain line each, in the words of the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

from astrolabe_ray.config.keys import unknown_key
from astrolabe_ray.errors import ConfigError

_NUMBERS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def as_config_error(error: ValidationError, where: str) -> ConfigError:
    """All findings of `error`, a line each, each starting with `where` (a file or a preset)."""
    lines: dict[str, str] = {}
    for detail in error.errors():
        path = _path(detail)
        line = _line(detail, path)
        if path in lines:  # each type that an option may have complains
            line = f"{lines[path]} or {_rule(detail)}"
        lines[path] = line
    return ConfigError("\n".join(f"{where}: {line}" for line in lines.values()))


def _path(detail: ErrorDetails) -> str:
    """Dotted key, without the type that pydantic adds where an option may have several."""
    parts = [str(part) for part in detail["loc"]]
    return ".".join(part for part in parts if part != "int" and not part.startswith("literal["))


def _line(detail: ErrorDetails, path: str) -> str:
    if detail["type"] == "extra_forbidden":
        return unknown_key(path)
    if detail["type"] == "missing":
        return f"{path} is required and has no default"
    return f"{path} = {detail['input']!r}: must be {_rule(detail)}"


def _rule(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {_number(context[name])}"
    if kind == "string_pattern_mismatch":  # of a name, the only strings with a pattern
        return "a name of letters, digits, '.', '_' and '-', for a folder is called by it"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "model_type":
        return (
            f"a section; set its options one by one: --config.{'.'.join(map(str, detail['loc']))}.KEY=VALUE"
        )
    for prefix, words in _NUMBERS.items():
        if kind.startswith(f"{prefix}_"):
            return words
    return detail["msg"].removeprefix("Input should be ").lower()


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
