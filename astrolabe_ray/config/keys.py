"""Which keys a config has, with their types; and what someone meant who wrote another one."""

from __future__ import annotations

import difflib
import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from astrolabe_ray.config.schema import RunConfig


def all_keys() -> dict[str, Any]:
    """Dotted key -> annotation of every single option; `rewards.0.weight` stands for every reward's."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type[BaseModel], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in section.model_fields.items():
        key, inner, is_list = f"{prefix}{name}", *section_inside(field.annotation)
        if inner is None:
            found.append((key, field.annotation))
        else:
            found += _walk(inner, f"{key}.0." if is_list else f"{key}.")
    return found


def section_inside(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that a field holds, and whether it holds a tuple of them; (None, False) if neither."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is tuple:
        first = get_args(annotation)[0]
        if isinstance(first, type) and issubclass(first, BaseModel):
            return first, True
    return None, False


def accepts_none(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def accepts_text(annotation: Any) -> bool:
    """True for `str`, a Literal of strings, and unions with one of them."""
    if annotation is str or isinstance(annotation, str):
        return True
    return any(accepts_text(inner) for inner in get_args(annotation))


def unknown_key(path: str) -> str:
    """The message for a key that does not exist: the likeliest one, or what there is to choose from.

    Example: `config has no key 'rollout.groupsize'; did you mean 'rollout.group_size'?`
    """
    message = f"config has no key '{path}'"
    *head, last = ["0" if part.isdigit() else part for part in path.split(".")]
    prefix = "".join(f"{part}." for part in head)
    known = all_keys()
    siblings = [key.removeprefix(prefix) for key in known if head and key.startswith(prefix)]
    meant = [f"{prefix}{name}" for name in difflib.get_close_matches(last, siblings, n=1)]
    meant = meant or [key for key in known if key.split(".")[-1] == last][:1]
    if not siblings:
        meant = meant or difflib.get_close_matches(prefix + last, known, n=1)
    if meant:
        return f"{message}; did you mean '{_with_indices(meant[0], path)}'?"
    if siblings:
        return f"{message}; {'.'.join(head)} has: {', '.join(sorted(siblings))}"
    return f"{message}; it has: {', '.join(sorted(RunConfig.model_fields))}"


def _with_indices(meant: str, written: str) -> str:
    """Put the index that the user wrote back where the table of keys has its stand-in 0."""
    parts, given = meant.split("."), written.split(".")
    if len(parts) == len(given):
        parts = [
            was if part == "0" and was.isdigit() else part for part, was in zip(parts, given, strict=True)
        ]
    return ".".join(parts)
