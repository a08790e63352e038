"""Everything that a run will read is looked at before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from astrolabe_ray.checkpoint_folders import is_of_first_release, latest_valid, step_of, what_is_wrong
from astrolabe_ray.config.schema import CheckpointConfig, LoggingConfig, RewardConfig, RunConfig
from astrolabe_ray.data.prompts import load_heldout, load_prompts
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import files_of, lora_size, require_lora_size

log = logging.getLogger(__name__)

RewardProblems = Callable[[RewardConfig], Sequence[tuple[str, str]]]
"""Why a reward can't be scored here: the option to blame, or "", and a line."""


def missing_inputs(config: RunConfig, problems: RewardProblems) -> list[str]:
    """A line for everything that the run would read and that is not here: scorers, prompts, model files."""
    checks: list[Callable[[], object]] = [
        lambda: check_rewards(config.rewards, problems),
        lambda: load_prompts(config.data.train_prompts),
        lambda: load_heldout(config.data.heldout_prompts, config.evaluation.num_prompts),
        lambda: check_model(config),
    ]
    lines: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            lines += str(error).splitlines()
    return lines


def check_rewards(rewards: Collection[RewardConfig], problems: RewardProblems) -> None:
    """Raises ConfigError with a line for each reward without a scorer and each file that is not here."""
    found: dict[str, None] = {}  # rewards of one scorer lack the same files
    for index, reward in enumerate(rewards):
        for option, line in problems(reward):
            found[f"rewards.{index}.{option}: {line}" if option else line] = None
    if found:
        raise ConfigError("\n".join(found))


def check_model(config: RunConfig) -> None:
    """Raises ConfigError naming the model or LoRA file that is missing or can't be used."""
    lora = files_of(config.model).lora_init
    if lora is not None and lora.is_dir():  # a file tells its rank only when it is opened
        require_lora_size(lora, lora_size(lora), config.lora)


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
) -> Path | None:
    """The checkpoint that `checkpoint.resume` asks for, or None for a fresh start.

    `earlier_runs` are the checkpoint folders of runs with this name, newest first; one whose checkpoints are
    all damaged is passed over, aloud. Raises ConfigError if there are only damaged ones, or if a folder was
    named that is no usable checkpoint.
    """
    if checkpoint.resume == "never":
        return None
    if checkpoint.resume == "auto":
        return _newest(earlier_runs)
    folder = Path(checkpoint.resume)
    if is_of_first_release(folder):
        step_of(folder)
        return folder
    what = what_is_wrong(folder) if folder.is_dir() else "there is no such folder"
    if what is not None:
        raise ConfigError(
            f"checkpoint.resume {folder} can't be used: {what}. Name a folder like "
            "RUN/checkpoints/checkpoint-30, or use --config.checkpoint.resume=auto."
        )
    return folder


def _newest(earlier_runs: Collection[Path]) -> Path | None:
    damaged: list[str] = []
    for run in earlier_runs:
        try:
            found = latest_valid(run)
        except ConfigError as error:
            damaged.append(str(error))
            continue
        if found is not None:
            for line in damaged:
                log.warning("an older run is continued: %s", line)
            return found
    if damaged:
        raise ConfigError("\n".join(damaged))
    return None
