"""`checkpoints list`, `verify`, `export` and `prune`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from astrolabe_ray.checkpoint_folders import (
    best_step,
    checkpoints,
    delete,
    leftovers,
    problems,
    step_of,
    surplus,
    what_is_wrong,
)
from astrolabe_ray.cli.sizes import bytes_in, size
from astrolabe_ray.config.schema import LearnerConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines
from astrolabe_ray.report.statistics import comparable_means

if TYPE_CHECKING:  # it loads torch
    from astrolabe_ray.models.lora_files import Lora

WEIGHTS = {"ema": "ema", "raw": "default", "old": "old"}
"""What people call the weights, and the adapter that they are."""
SEED_CHECKPOINT = "seed-checkpoint"
ADAM_SETTINGS = ("lr", "adam_betas", "adam_eps", "weight_decay")


def list_checkpoints(run: Path) -> None:
    """Print a line for each checkpoint. Raises ConfigError if there is none."""
    found, rewards, weights = _found(run), heldout_rewards(run), evaluated_weights(run)
    best = best_step(found, rewards)
    typer.echo(f"{'step':>8}  {'size':>8}  {'held-out reward of':>18}  state")
    for path in found:
        step = step_of(path)
        reward = f"{rewards[step]:.4f} {weights[step]:>3}" if step in rewards else "-"
        wrong = what_is_wrong(path)
        state = "valid" if wrong is None else f"DAMAGED: {wrong}"
        marks = ", best" if step == best else ""
        typer.echo(f"{step:>8}  {size(bytes_in(path)):>8}  {reward:>18}  {state}{marks}")


def verify_checkpoints(run: Path) -> None:
    """Print a line for each damage, and exit with 1 if there is any."""
    is_sound = True
    for path in _found(run):
        lines = list(problems(path))
        is_sound = is_sound and not lines
        for line in lines:
            typer.echo(f"{path}: {line}")
        if not lines:
            typer.echo(f"{path}: valid")
    if not is_sound:
        raise typer.Exit(1)


def export_checkpoint(run: Path, out: Path, *, step: str, weights: str, form: str) -> None:
    """Write a LoRA, or all that the first release resumes from, into `out`.

    Raises ConfigError for a checkpoint that is not there or damaged, for unknown weights or formats, and for
    an `out` that holds something.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"there are no weights '{weights}'; there are: {', '.join(WEIGHTS)}")
    chosen = _chosen(run, step)
    wrong = what_is_wrong(chosen)
    if wrong is not None:
        raise ConfigError(f"{chosen} can't be exported: {wrong}. `checkpoints list {run}` names valid ones.")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")
    from safetensors.torch import load_file  # loads torch

    from astrolabe_ray.models.files import lora_size
    from astrolabe_ray.models.lora_files import Lora, LoraFormat, write_lora

    formats: dict[str, LoraFormat] = {name: name for name in get_args(LoraFormat)}
    if form not in (*formats, SEED_CHECKPOINT):
        names = ", ".join((*formats, SEED_CHECKPOINT))
        raise ConfigError(f"there is no format '{form}'; there are: {names}")
    rank, alpha = lora_size(chosen / "lora")
    lora = Lora(load_file(chosen / "adapters" / f"{WEIGHTS[weights]}.safetensors"), rank, alpha)
    if form == SEED_CHECKPOINT:
        out = out / chosen.name
        _write_seed_checkpoint(run, chosen, lora, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_lora(lora, out, formats[form])
    typer.echo(
        f"{out}: {weights} weights of step {step_of(chosen)}, rank {rank}, alpha {alpha:g}, for {form}"
    )


def _write_seed_checkpoint(run: Path, chosen: Path, lora: Lora, out: Path) -> None:
    """Its optimizer's settings are those that the run was configured with."""
    from safetensors.torch import load_file

    from astrolabe_ray.models.first_release import write_first_release

    config = RunDir(run).config
    if not config.exists():
        raise ConfigError(
            f"{config} is missing; it tells the settings of AdamW. Use --format seed without it."
        )
    told = read_json(config)["learner"]
    settings = LearnerConfig(**{name: told[name] for name in ADAM_SETTINGS})
    moments = load_file(chosen / "learner" / "optimizer.safetensors")
    out.mkdir(parents=True)
    write_first_release(lora, moments, read_json(chosen / "state.json")["num_updates"], settings, out)


def prune_checkpoints(run: Path, *, keep: int, keep_best: bool, is_real: bool) -> None:
    """Print what goes and why the rest stays; delete it only if `is_real`."""
    found = _found(run)
    best = best_step(found, heldout_rewards(run)) if keep_best else None
    newest = next((path for path in reversed(found) if what_is_wrong(path) is None), None)
    stays = {best} if newest is None else {best, step_of(newest)}
    doomed = surplus(found, keep, {step for step in stays if step is not None})
    drafts = leftovers(run / "checkpoints")
    freed = sum(map(bytes_in, [*doomed, *drafts]))
    verb = "deleted" if is_real else "would go"
    for path in found:
        if path in doomed:
            typer.echo(f"{verb:>8}  {path}  {size(bytes_in(path))}")
        else:
            reason = (
                "newest valid" if path == newest else "best" if step_of(path) == best else "among the newest"
            )
            typer.echo(f"{'stays':>8}  {path}  {reason}")
    for path in drafts:
        typer.echo(f"{verb:>8}  {path}  left by a run that was killed")
    if is_real:
        for path in doomed:
            delete(path)
        for path in drafts:
            shutil.rmtree(path)
    typer.echo(f"{size(freed)} {'freed' if is_real else 'would be free; add --delete'}")


def heldout_rewards(run: Path) -> dict[int, float]:
    """Mean held-out reward by the step of the policy that was evaluated, over the same videos."""
    lines = read_lines(RunDir(run).evaluations)
    return comparable_means(
        {line["step"]: {(r["prompt"], r["seed"]): r["total"] for r in line["records"]} for line in lines}
    )


def evaluated_weights(run: Path) -> dict[int, str]:
    """What to export of each evaluated step: after training it is the average, before that what samples."""
    lines = read_lines(RunDir(run).evaluations)
    return {line["step"]: "ema" if line["phase"] == "after" else "old" for line in lines}


def _found(run: Path) -> list[Path]:
    found = checkpoints(RunDir(run).checkpoints)
    if not found:
        raise ConfigError(
            f"there are no checkpoints in {RunDir(run).checkpoints}. Name the folder of a run, as `train` "
            "prints it: LOG_DIR/BASE_MODEL/NAME_DATE_TIME."
        )
    return found


def _chosen(run: Path, step: str) -> Path:
    """The checkpoint that `step` means: a number, `newest` (and valid) or `best`."""
    found = _found(run)
    if step == "newest":
        return next((path for path in reversed(found) if what_is_wrong(path) is None), found[-1])
    wanted = best_step(found, heldout_rewards(run)) if step == "best" else step
    if wanted is None:
        raise ConfigError(f"no checkpoint of {run} was evaluated; name a step, or set evaluation.every_steps")
    for path in found:
        if path.name == f"checkpoint-{wanted}":
            return path
    steps = ", ".join(str(step_of(path)) for path in found)
    raise ConfigError(f"{run} has no checkpoint of step {wanted}; there are: newest, best, {steps}")
