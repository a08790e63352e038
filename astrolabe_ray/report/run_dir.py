"""The folder of a run: where everything is, and how files are put there without being lost half-way."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class RunDir:
    """`logs/nft/<base_model>/<name>_<timestamp>/` and what lies in it."""

    path: Path

    @classmethod
    def create(cls, log_dir: str, base_model: str, name: str) -> RunDir:
        """A new folder; a number is appended when two runs start in the same second."""
        stem = f"{name}_{datetime.now():%Y.%m.%d_%H.%M.%S}"
        parent = Path(log_dir).resolve() / base_model
        number, path = 1, parent / stem
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = parent / f"{stem}_{number}"
        run_dir = cls(path)
        run_dir.eval_videos.mkdir()
        run_dir.checkpoints.mkdir()
        return run_dir

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def eval_videos(self) -> Path:
        """`<phase>/<number>.mp4` and `index.json`, which says what they are."""
        return self.path / "eval_videos"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def gradients(self) -> Path:
        """One JSON object per step: by kind of layer the gradient norms of blocks 0, 1, ..."""
        return self.path / "gradients.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON object per evaluation, with every held-out video's scores."""
        return self.path / "evaluations.jsonl"

    @property
    def alarms(self) -> Path:
        """One JSON object per alarm of a guard."""
        return self.path / "alarms.jsonl"

    @property
    def timeline(self) -> Path:
        """One JSON object per span of work."""
        return self.path / "timeline.jsonl"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def origin(self) -> Path:
        """The run, the checkpoint and the step that this run goes on from, if it does."""
        return self.path / "origin.json"

    @property
    def wandb_id(self) -> Path:
        """The W&B run, which a continued run goes on in."""
        return self.path / "wandb_id.txt"

    @property
    def failure(self) -> Path:
        """Where the error came from that ended the run, if one did."""
        return self.path / "failure.txt"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def write_bytes(path: Path, content: bytes) -> None:
    """All of `content` or nothing: written beside, forced to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    write_bytes(path, (_json(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """One JSON object a line, in one write, so that a reader never sees half of it."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_json(record) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """All `records` or nothing, one JSON object a line."""
    write_bytes(path, "".join(_json(record) + "\n" for record in records).encode())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of lines; none if it does not exist. A torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _json(content: Any, *, indent: int | None = None) -> str:
    """JSON has no NaN and no infinity: they become null, or other programs could not read the file."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
