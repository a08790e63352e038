"""A run that goes on from a checkpoint begins with what the run of that checkpoint recorded up to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from astrolabe_ray.checkpoint_folders import is_of_first_release, step_of
from astrolabe_ray.report.run_dir import (
    Json,
    RunDir,
    append_line,
    read_json,
    read_lines,
    write_bytes,
    write_json,
)
from astrolabe_ray.types import EvalRecord, Evaluation, PolicyVersion

WANDB_ID = "wandb_id"
"""What a checkpoint calls the W&B run among its notes."""


@dataclass(frozen=True)
class Earlier:
    """What a run knows of the part before it. Nothing, for a run from the start."""

    evaluations: tuple[Evaluation, ...] = ()
    wandb_id: str | None = None


def take_over(checkpoint: Path, run_dir: RunDir) -> Earlier:
    """Copy what was recorded up to `checkpoint`, videos included, into `run_dir`; note whose it is.

    The last evaluation of a run that ended is left out: it was of the EMA weights, and this run has its own.
    Of a checkpoint that lies outside of a run's folder only the W&B run is known.
    """
    state = {} if is_of_first_release(checkpoint) else read_json(checkpoint / "state.json")
    old, step = RunDir(checkpoint.resolve().parent.parent), state.get("step", step_of(checkpoint))
    wandb_id = state.get("controller", {}).get(WANDB_ID)
    write_json(run_dir.origin, {"run": str(old.path), "checkpoint": str(checkpoint), "step": step})
    if not old.evaluations.exists():
        return Earlier(wandb_id=wandb_id)
    for source, target in (
        (old.metrics, run_dir.metrics),
        (old.gradients, run_dir.gradients),
        (old.alarms, run_dir.alarms),
    ):
        for row in read_lines(source):
            if row["step"] <= step:
                append_line(target, row)
    evaluations = [line for line in read_lines(old.evaluations) if line["phase"] != "after"]
    lines = [line for line in evaluations if line["step"] <= step]
    for line in lines:
        append_line(run_dir.evaluations, line)
    _copy_videos(old, run_dir, {line["phase"] for line in lines})
    if wandb_id is None and old.wandb_id.exists():  # checkpoints of earlier versions did not tell
        wandb_id = old.wandb_id.read_text().strip()
    return Earlier(tuple(map(_evaluation, lines)), wandb_id)


def _evaluation(line: Json) -> Evaluation:
    """Inverse of what `RunRecorder.evaluated` writes; videos are in files."""
    records = tuple(EvalRecord(**record) for record in line["records"])
    version, left_out = PolicyVersion(step=line["step"]), tuple(line.get("left_out", ()))
    return Evaluation(line["phase"], version, records, line["diversity"], line.get("looks", {}), left_out)


def _copy_videos(old: RunDir, run_dir: RunDir, phases: set[str]) -> None:
    index_file = old.eval_videos / "index.json"
    index = read_json(index_file) if index_file.exists() else []
    kept = [entry for entry in index if entry["phase"] in phases]
    for entry in kept:
        write_bytes(run_dir.eval_videos / entry["file"], (old.eval_videos / entry["file"]).read_bytes())
    if kept:
        write_json(run_dir.eval_videos / "index.json", kept)
