"""Reads a checkpoint for a learner: of this project or of the first Astrolabe release."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.checkpoint_folders import is_of_first_release, what_is_wrong
from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import ConfigError
from learner.engine import Engine
from learner.reference import Reference
from learner.seed_checkpoint import read_seed_state
from learner.state_files import LearnerState, read_state


def read_checkpoint(directory: Path, engine: Engine, reference: Reference, lora: LoraConfig) -> LearnerState:
    """Raises ConfigError when it is damaged or does not fit the adapter of `engine`."""
    if is_of_first_release(directory):
        fresh, _ = engine.optimizer_state()
        return read_seed_state(directory, lora, flat=engine.flat, fresh=fresh, reference=reference.begun_with)
    problem = what_is_wrong(directory)
    if problem is not None:
        raise ConfigError(f"checkpoint {directory} can't be used: {problem}.")
    return read_state(directory, flat=engine.flat)
