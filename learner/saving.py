"""Writes a checkpoint and says in one line why it can't be written."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import AstrolabeError
from learner import checkpoint
from learner.state_files import LearnerState, Named, write_state

log = logging.getLogger(__name__)


def save_checkpoint(
    state: LearnerState, directory: Path, *, named: Named, lora: LoraConfig, keep_last: int
) -> None:
    """Write `state` as the checkpoint `directory`, then delete all but the newest `keep_last` beside it.

    Raises AstrolabeError, with nothing left behind, when it can't be written (disk full, permissions). Old
    ones that can't be deleted stay, with a warning.
    """
    try:
        with checkpoint.written_atomically(directory) as folder:
            write_state(state, folder, named=named, lora=lora)
    except (OSError, SafetensorError) as error:
        raise AstrolabeError(
            f"checkpoint {directory} can't be written: {error}. Make room or give permission there, then go "
            "on with checkpoint.resume=auto."
        ) from error
    try:
        checkpoint.prune(directory.parent, keep_last)
    except OSError as error:
        log.warning("older checkpoints in %s stay: %s", directory.parent, error)
