"""Prompt texts that reward models were trained with: read from the publishers' own files, never retyped.

A file is parsed as text and not imported, and a text counts only if its SHA-256 is the known one. No torch.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path
from string import Formatter

from astrolabe_ray.config.reward_files import PublishedText
from astrolabe_ray.errors import ConfigError


def read_texts(path: Path, wanted: Sequence[PublishedText]) -> list[str]:
    """The constants `wanted` as they are assigned at the top of a Python file.

    Raises ConfigError for a file that can't be read and for a text that is missing or not the known one.
    """
    try:
        module = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as reason:
        raise ConfigError(f"{path} can't be read as Python source: {reason}; fetch it again") from None
    constants = {
        target.id: node.value
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [_checked(constants.get(text.name), text, path) for text in wanted]


def filled(text: str, caption: str) -> str:
    """`text` with `caption` in its one placeholder. Raises ConfigError if it has none or several."""
    names = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    if len(names) != 1:
        raise ConfigError(f"a prompt text needs one placeholder for the caption, this one has {names}")
    return text.format(**{names[0]: caption})


def _checked(node: ast.expr | None, text: PublishedText, path: Path) -> str:
    if node is None:
        raise ConfigError(f"{path} assigns no {text.name}; fetch it again from its publisher")
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise ConfigError(f"{text.name} in {path} is no plain text; fetch the file again")
    digest = hashlib.sha256(value.encode()).hexdigest()
    if digest != text.sha256:
        raise ConfigError(
            f"{text.name} in {path} is not the text that the model was trained with: it has {len(value):,} "
            f"characters and SHA-256 {digest[:12]}..., needed are {text.num_chars:,} and "
            f"{text.sha256[:12]}.... Fetch the file again from its publisher."
        )
    return value
