"""Writes a checkpoint and says in one line why it can't be written."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from astrolabe_ray.checkpoint_folders import written_atomically
from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import AstrolabeError
from learner.state_files import LearnerState, Named, write_state


def save_checkpoint(state: LearnerState, directory: Path, *, named: Named, lora: LoraConfig) -> None:
    """Write `state` as the checkpoint `directory`.

    Raises AstrolabeError, with nothing left behind, when it can't be written (disk full, permissions).
    """
    try:
        with written_atomically(directory) as folder:
            write_state(state, folder, named=named, lora=lora)
    except (OSError, SafetensorError) as error:
        raise AstrolabeError(
            f"checkpoint {directory} can't be written: {error}. Make room or give permission there, then go "
            "on with checkpoint.resume=auto."
        ) from error
