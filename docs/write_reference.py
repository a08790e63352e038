"""Writes docs/reference.md from the config's schema: `make docs`."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from astrolabe_ray.config import schema
from astrolabe_ray.config.keys import section_inside

PAGE = Path(__file__).with_name("reference.md")

HEAD = """# Every option of a run

Written by `make docs` from `astrolabe_ray/config/schema.py`; a test checks that it is current.
Any option can be set in a preset or on the command line: `--config.rollout.group_size=16`,
`--config.rewards.0.weight=2`, `--config.model.denoising_steps=1000,500`,
`--config.model.window_frames=none`. What a preset makes of them:
`python launch.py configs show configs/nft_tiny.py:tiny_sprites`.
"""


def reference() -> str:
    """The page as Markdown."""
    notes = field_notes()
    parts = [HEAD]
    for name, section, is_list in sections():
        title = f"`{name}`" if name else "The run itself"
        parts.append(f"## {title}{' (one for each reward)' if is_list else ''}\n")
        parts.append(f"{inspect.getdoc(section)}\n")
        parts.append("| option | default | values | meaning |\n|---|---|---|---|")
        for key, field in section.model_fields.items():
            if section_inside(field.annotation)[0] is not None:
                continue
            note = notes[section.__name__].get(key, "")
            full = f"{name}.{'0.' if is_list else ''}{key}" if name else key
            parts.append(f"| `{full}` | {_default(field)} | {_values(field)} | {_cell(note)} |")
        parts.append("")
    return "\n".join(parts)


def sections() -> list[tuple[str, type[BaseModel], bool]]:
    """(name in RunConfig, class, whether it is a list of them); the run's own options come first."""
    found: list[tuple[str, type[BaseModel], bool]] = [("", schema.RunConfig, False)]
    for name, field in schema.RunConfig.model_fields.items():
        inner, is_list = section_inside(field.annotation)
        if inner is not None:
            found.append((name, inner, is_list))
    return found


def field_notes() -> dict[str, dict[str, str]]:
    """Class -> field -> the text under the field. Notes of a group stand under its last field."""
    tree = ast.parse(inspect.getsource(schema))
    notes: dict[str, dict[str, str]] = {}
    for item in tree.body:
        if isinstance(item, ast.ClassDef):
            own = notes[item.name] = {}
            for statement, after in zip(item.body, item.body[1:], strict=False):
                if (
                    isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                    and isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                ):
                    own[statement.target.id] = " ".join(str(after.value.value).split())
    return notes


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{'none' if value is None else value}`"


def _values(field: FieldInfo) -> str:
    words = [_type(field.annotation)]
    for rule in field.metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(rule, name, None)) is not None:
                words.append(f"{sign} {bound:g}")
    return _cell(", ".join(words))


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {get_args(annotation)[0].__name__}"
    parts = [part for part in get_args(annotation) if part is not type(None)]
    text = " or ".join(_type(part) for part in parts) if parts else annotation.__name__
    return f"{text} or none" if type(None) in get_args(annotation) else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference())
    print(f"wrote {PAGE}")
