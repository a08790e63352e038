"""Everything that a run will read is looked at before anything starts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from pathlib import Path

from astrolabe_ray.config.schema import CheckpointConfig, LoggingConfig, RewardConfig, RunConfig
from astrolabe_ray.data.prompts import load_prompts
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import files_of


def check_rewards(rewards: Collection[RewardConfig], scorer_keys: Collection[str]) -> None:
    """Raises ConfigError for a reward that has no scorer."""
    for index, reward in enumerate(rewards):
        if reward.key not in scorer_keys:
            meant = difflib.get_close_matches(reward.key, scorer_keys, n=1)
            hint = f"did you mean '{meant[0]}'? " if meant else ""
            raise ConfigError(
                f"rewards.{index}.key: there is no scorer '{reward.key}'; {hint}"
                f"There are: {', '.join(sorted(scorer_keys))}"
            )


def check_files(config: RunConfig) -> None:
    """Raises ConfigError naming the prompt file or model file that is missing or unreadable."""
    load_prompts(config.data.train_prompts)
    load_prompts(config.data.heldout_prompts)
    files_of(config.model)


def check_log_dir(logging: LoggingConfig) -> None:
    """Raises ConfigError if runs can't be written where the config says."""
    folder = Path(logging.log_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            f"logging.log_dir {folder} can't be written: {error.strerror}. "
            "Try --config.logging.log_dir=FOLDER."
        ) from None


def find_checkpoint(
    checkpoint: CheckpointConfig,
    earlier_runs: Collection[Path],
    problem: Callable[[Path], str | None],
    latest: Callable[[Path], Path | None],
) -> Path | None:
    """The checkpoint that `checkpoint.resume` asks for, or None for a fresh start.

    `earlier_runs` are the checkpoint folders of runs with this name, newest first. Raises ConfigError
    if a folder was named that is no usable checkpoint.
    """
    if checkpoint.resume == "never":
        return None
    if checkpoint.resume == "auto":
        return next((found for found in map(latest, earlier_runs) if found is not None), None)
    folder = Path(checkpoint.resume)
    what = problem(folder) if folder.is_dir() else "there is no such folder"
    if what is not None:
        raise ConfigError(
            f"checkpoint.resume {folder} can't be used: {what}. Name a folder like "
            "RUN/checkpoints/checkpoint-30, or use --config.checkpoint.resume=auto."
        )
    return folder
