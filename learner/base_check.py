"""Whether a checkpoint's adapters are put on the base model that they were trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.errors import ConfigError
from learner.state_files import LearnerState

PROBE_TOLERANCE = 5e-2  # relative; another device or dtype stays below, another model far above


def require_same_base(
    directory: Path,
    state: LearnerState,
    actual: Sequence[float],
    reference_probe: Callable[[], Sequence[float]],
    model: ModelConfig,
) -> None:
    """`actual`: the probe's output with the checkpoint's `default`; `reference_probe` gives the reference's.

    Raises ConfigError for another base or initial LoRA than the checkpoint was made with.
    """
    if state.probe is None or state.reference_probe is None:
        return
    if not _agree(actual, state.probe):
        raise ConfigError(
            f"checkpoint {directory} was made with another base model than {model.path}: the same adapter "
            "gives another output. Resume with the model.path and model.checkpoint it had."
        )
    if not _agree(reference_probe(), state.reference_probe):
        raise ConfigError(
            f"checkpoint {directory} was made with another initial LoRA than {model.lora_init}: the "
            "reference policy gives another output. Resume with the model.lora_init it started from."
        )


def _agree(actual: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether two probes are of the same weights, on whatever device and in whatever dtype."""
    return len(actual) == len(expected) and math.dist(actual, expected) <= PROBE_TOLERANCE * math.hypot(
        *expected
    )
