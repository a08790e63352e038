"""Prompt files, and the caption lists of the embedded world."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.data.sprites.captions import heldout_captions, train_captions
from astrolabe_ray.errors import ConfigError

BUILTIN = {"builtin:sprites/train": train_captions, "builtin:sprites/heldout": heldout_captions}


def load_prompts(source: str) -> list[str]:
    """Prompts of a text file (one a line, blank lines skipped) or of a built-in list.

    Raises ConfigError when the file can't be read or holds no prompt.
    """
    if source in BUILTIN:
        return [str(caption) for caption in BUILTIN[source]()]
    if source.startswith("builtin:"):
        raise ConfigError(f"there is no prompt list '{source}'; use {' or '.join(BUILTIN)} or a text file.")
    try:
        text = Path(source).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as reason:  # RuntimeError: the home of nobody
        raise ConfigError(
            f"can't read the prompt file {source}: {reason}. "
            "It must be a UTF-8 text file with one prompt a line."
        ) from reason
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ConfigError(f"the prompt file {source} holds no prompt; write one prompt a line.")
    return prompts


def load_heldout(source: str, wanted: int) -> list[str]:
    """The first `wanted` prompts of `source`. Raises ConfigError when it holds fewer or can't be read."""
    prompts = load_prompts(source)
    if len(prompts) < wanted:
        raise ConfigError(
            f"data.heldout_prompts ({source}) has {len(prompts)} prompts, evaluation.num_prompts asks for "
            f"{wanted}: lower it or add prompts."
        )
    return prompts[:wanted]
