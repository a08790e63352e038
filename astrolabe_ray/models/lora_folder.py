"""Where the files of a LoRA are. No torch here: a missing file is found before anything heavy loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from astrolabe_ray.errors import ConfigError

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def find_lora(path: str) -> Path:
    """The PEFT folder at `path`: itself, or its child `lora/`, as checkpoints of a run have one.

    Raises ConfigError naming what is absent.
    """
    root = Path(path).expanduser()
    folder = next((found for found in (root, root / "lora") if (found / SETTINGS).is_file()), None)
    if folder is None:
        raise ConfigError(
            f"no LoRA in {path}: neither it nor its child lora/ holds {SETTINGS}; name a PEFT folder or a "
            "checkpoint like RUN/checkpoints/checkpoint-30"
        )
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has {SETTINGS} but no {WEIGHTS}; copy it again")
    return folder


def lora_scale(folder: Path) -> float:
    """alpha / rank. Raises ConfigError for settings without them."""
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
        return float(settings["lora_alpha"]) / float(settings["r"])
    except (json.JSONDecodeError, KeyError, TypeError, ZeroDivisionError) as reason:
        raise ConfigError(
            f"{folder / SETTINGS} does not tell lora_alpha and r: {reason!r}; a PEFT folder has them"
        ) from None
