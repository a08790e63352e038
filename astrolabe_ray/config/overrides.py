"""`--config.rollout.group_size=16`: change single options of a preset from the command line."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from astrolabe_ray.config.keys import accepts_none, accepts_text, section_inside, unknown_key
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.validation import as_config_error
from astrolabe_ray.errors import ConfigError

PREFIX = "--config."
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with each `KEY=VALUE` applied in order and the whole checked again.

    KEY is dotted, with the index or the key of a reward (`rewards.0.weight`, `rewards.tiny_clip.weight`),
    with or without the leading `--config.`. VALUE is text for text options and otherwise a number, true,
    false, none, or a list like `1000,500`. Raises ConfigError for an unknown key, a bad index or a value
    out of range.
    """
    values = config.model_dump()
    for override in overrides:
        key, equals, text = override.removeprefix(PREFIX).partition("=")
        if not equals:
            raise ConfigError(f"'{override}' has no value; write {PREFIX}{key}=VALUE")
        _set(values, key, text)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise as_config_error(error, "command line") from None


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Walk `values` along `key` and replace the last item, checking every part against the schema."""
    here: Any = values
    annotation: Any = RunConfig
    *path, last = key.split(".")
    for part in path:
        index, annotation = _step(here, annotation, part, key)
        here = here[index]
    index, annotation = _step(here, annotation, last, key)
    here[index] = parse_value(text, annotation)


def _step(here: Any, annotation: Any, part: str, key: str) -> tuple[str | int, Any]:
    """Index of `part` in `here` and the annotation of what is there. Turns tuples into lists first."""
    section, is_list = section_inside(annotation)
    if section is None:
        raise ConfigError(unknown_key(key))
    if is_list:
        return _list_index(here, part, key), section
    field = section.model_fields.get(part)
    if field is None:
        raise ConfigError(unknown_key(key))
    if isinstance(here[part], tuple):
        here[part] = list(here[part])
    return part, field.annotation


def _list_index(here: list[Any], part: str, key: str) -> int:
    """The entry that `part` counts or names by its `key`."""
    named = [index for index, item in enumerate(here) if item.get("key") == part]
    if named:
        return named[0]
    if not part.isdigit() or int(part) >= len(here):
        names = ", ".join(f"{index} ({item.get('key', '?')})" for index, item in enumerate(here))
        raise ConfigError(f"config has no key '{key}': '{part}' is not one of its entries {names}")
    return int(part)


def parse_value(text: str, annotation: Any) -> Any:
    """`text` as a value for an option of type `annotation`; left as text if it is no literal.

    The schema decides afterwards whether the value is right, so that there is one place for that.
    """
    word = text.strip().lower()
    if word in ("none", "null") and accepts_none(annotation):
        return None
    if get_origin(annotation) is tuple and get_origin(get_args(annotation)[0]) is Literal:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if accepts_text(annotation):
        return text
    if word in _WORDS:
        return _WORDS[word]
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text
    is_single = get_origin(annotation) is tuple and not isinstance(value, (tuple, list))
    return (value,) if is_single else value


def describe(section: BaseModel, prefix: str = "") -> list[str]:
    """Every option of a config as `key = value` lines, as they could be typed after `--config.`."""
    lines: list[str] = []
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            lines += describe(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            for index, item in enumerate(value):
                lines += describe(item, f"{prefix}{name}.{index}.")
        else:
            lines.append(f"{prefix}{name} = {_written(value)}")
    return lines


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
