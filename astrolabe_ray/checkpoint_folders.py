"""Checkpoints that are either complete or not there: files first, their manifest last, then a rename.

checkpoints/checkpoint-<step>/
  lora/adapter_model.safetensors, adapter_config.json   EMA weights, loadable by PEFT
  adapters/{default,old,ema}.safetensors, old-<step>.safetensors   what training goes on with
  adapters/reference.safetensors                                   if the reference policy moves
  learner/optimizer.safetensors
  state.json      version, counters of learner and controller, the W&B run
  manifest.json   size and sha256 of every other file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from astrolabe_ray.errors import ConfigError

MANIFEST = "manifest.json"
NAME = re.compile(r"checkpoint-\d+")

log = logging.getLogger(__name__)


@contextmanager
def written_atomically(directory: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `directory` if the block succeeds.

    A `directory` that exists is replaced. After a crash at any moment `directory` is absent, the old
    one or the new one, and complete. Raises OSError (disk full, permissions) with nothing left behind.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.parent / f"tmp-{directory.name}.{uuid.uuid4().hex[:8]}"
    earlier = draft.with_name(f"{draft.name}.replaced")
    draft.mkdir()
    try:
        yield draft
        files = sorted(path for path in draft.rglob("*") if path.is_file())
        entries = {str(path.relative_to(draft)): _fingerprint(path) for path in files}
        (draft / MANIFEST).write_text(json.dumps({"files": entries}, indent=1))
        for path in (*files, draft / MANIFEST, *(p for p in draft.rglob("*") if p.is_dir()), draft):
            _sync(path)
        if directory.exists():
            os.replace(directory, earlier)
        try:
            os.replace(draft, directory)
        except OSError:
            if earlier.exists():
                os.replace(earlier, directory)
            raise
        _sync(directory.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if directory.exists():  # or the earlier one is all there is
            shutil.rmtree(earlier, ignore_errors=True)


def problems(directory: Path) -> Iterator[str]:
    """A line for each damage of a checkpoint. Reads every byte."""
    try:
        entries = dict(json.loads((directory / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{MANIFEST} is missing or unreadable"
        return
    for name, expected in entries.items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif _fingerprint(path) != expected:
            yield f"{name} is not what was written"


def what_is_wrong(directory: Path) -> str | None:
    """Why a checkpoint can't be used, or None."""
    return next(problems(directory), None)


def is_of_first_release(directory: Path) -> bool:
    """Whether a folder is a checkpoint of the first Astrolabe release, which wrote no manifest."""
    is_ours = (directory / MANIFEST).exists() or (directory / "state.json").exists()
    return not is_ours and (directory / "lora" / "adapter_model.bin").is_file()


def latest_valid(root: Path) -> Path | None:
    """The checkpoint of the highest step under `root` that is complete; None if there is none at all.

    Skips damaged ones and logs why. Raises ConfigError if there are checkpoints but all are damaged.
    """
    wrong: list[str] = []
    for path in reversed(checkpoints(root)):
        problem = what_is_wrong(path)
        if problem is None:
            return path
        wrong.append(f"{path}: {problem}")
        log.warning("skipping checkpoint %s", wrong[-1])
    if wrong:
        raise ConfigError(
            f"no checkpoint under {root} can be used ({'; '.join(wrong)}). Use checkpoint.resume=never or "
            "another folder."
        )
    return None


def checkpoints(root: Path) -> list[Path]:
    """All checkpoint folders under `root`, by step."""
    return sorted((path for path in root.glob("checkpoint-*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Raises ConfigError for a folder of another name."""
    if not NAME.fullmatch(checkpoint.name):
        raise ConfigError(f"{checkpoint} does not say its step: name the folder checkpoint-STEP")
    return int(checkpoint.name.removeprefix("checkpoint-"))


def best_step(checkpoints: Iterable[Path], rewards: Mapping[int, float]) -> int | None:
    """The step of the highest held-out reward among `checkpoints`, the later one of two that are equal;
    None if none of them was evaluated."""
    steps = [step for path in checkpoints if (step := step_of(path)) in rewards]
    return max(steps, key=lambda step: (rewards[step], step), default=None)


def surplus(checkpoints: Sequence[Path], keep_last: int, keep_steps: Collection[int] = ()) -> list[Path]:
    """What pruning may delete: all but the newest `keep_last` and those of `keep_steps`."""
    return [path for path in checkpoints[:-keep_last] if step_of(path) not in keep_steps]


def delete(directory: Path) -> None:
    """Take a checkpoint away in one move first: half of one would look damaged."""
    doomed = directory.parent / f"tmp-{directory.name}.{uuid.uuid4().hex[:8]}.deleted"
    os.replace(directory, doomed)
    shutil.rmtree(doomed)


def leftovers(root: Path) -> list[Path]:
    """Drafts of writers that were killed, untouched for an hour."""
    latest = time.time() - 3600
    return sorted(path for path in root.glob("tmp-checkpoint-*") if path.stat().st_mtime < latest)


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Force a file's or folder's contents to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
