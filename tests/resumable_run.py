"""A small run in one process whose every number can be compared bit for bit, and what it leaves behind.

As a program (`python -m tests.resumable_run MODEL FOLDER STEPS`) it goes on from the newest checkpoint below
FOLDER, as `checkpoint.resume=auto` does, and can be killed at any moment.
"""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.checkpoint_folders import checkpoints
from astrolabe_ray.cli.inputs import find_checkpoint
from astrolabe_ray.cli.train import earlier_checkpoints
from astrolabe_ray.config.schema import LoggingConfig, RunConfig
from astrolabe_ray.metrics.console import RunConsole
from astrolabe_ray.metrics.recorder import RunRecorder
from astrolabe_ray.report.continued import Earlier, take_over
from astrolabe_ray.report.gallery import LocalGallery
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines
from astrolabe_ray.run import Roles, run_training
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from learner.local import LocalLearner
from learner.spec import LearnerSpec
from tests.tiny_policy import tiny_run

TIMES = ("time", "rollouts_per_s")  # and what begins with seconds/


class Judge:
    """Two rewards that look at the frames."""

    views = (FrameSpec(num_frames=3),)

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        videos = [rollout.views[0].astype(np.float64) / 255 for rollout in rollouts]
        return [Scores({"bright": float(v.mean()), "red": float(v[:, 0].mean())}, 0.0) for v in videos]

    async def stop(self) -> None: ...


def resumable(model: Path, folder: Path, num_steps: int) -> RunConfig:
    """Everything with a state is on: a reference that moves, selected samples, a slow old policy, EMA."""
    config = tiny_run(model, num_groups=2, group_size=4, batch_size=4)
    changes: dict[str, Any] = {
        "num_steps": num_steps,
        "rewards": [{"key": "bright"}, {"key": "red", "weight": 0.5}],
        "algorithm": {
            "kl_samples": "disagreeing",
            "main_reward": "bright",
            "kl_coef": 0.1,
            "reference_max_age": 2,
            "old_policy_decay": "linear",
        },
        "learner": {"lr": 1e-2, "micro_batch_size": 4},
        "data": {"train_prompts": str(prompt_file(folder)), "heldout_prompts": str(prompt_file(folder))},
        "evaluation": {"num_prompts": 2, "rollouts_per_prompt": 2, "every_steps": 2, "num_shown_videos": 0},
        "checkpoint": {"every_steps": 1, "resume": "auto"},
        "logging": LoggingConfig(log_dir=str(folder), wandb="disabled"),
    }
    return RunConfig.model_validate(config.model_dump() | changes)


def prompt_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.txt"
    words = ("red circle", "blue square", "red square", "blue circle", "circle", "square", "red", "blue")
    path.write_text("".join(f"a {word}\n" for word in words))
    return path


def local_roles(config: RunConfig) -> Roles:
    blobs = LocalBlobStore()
    return Roles(
        rollouts=LocalRolloutPool(config),
        rewards=Judge(),
        learner=LocalLearner(LearnerSpec.of(config), blobs),
        gallery=LocalGallery(blobs),
    )


class Recorder(RunRecorder):
    """Files only."""

    def __init__(self, run_dir: RunDir) -> None:
        super().__init__(run_dir, RunConsole(Console(file=io.StringIO())), ())


def carry_on(config: RunConfig, make_recorder: type[RunRecorder] | Any = Recorder) -> RunDir:
    """One life of the run: from the newest checkpoint of any earlier life to the end."""
    resume_from = find_checkpoint(config.checkpoint, earlier_checkpoints(config))
    run_dir = RunDir.create(config.logging.log_dir, config.model.base_model, config.name)
    earlier = take_over(resume_from, run_dir) if resume_from is not None else Earlier()
    work = run_training(
        config,
        local_roles(config),
        run_dir,
        make_recorder(run_dir),
        asyncio.Event(),
        resume_from=resume_from,
        earlier=earlier.evaluations,
    )
    asyncio.run(work)
    return run_dir


def left_behind(run_dir: RunDir) -> dict[str, Any]:
    """All that a run computed, without times: metrics, gradients, evaluations, adapters, Adam, counters."""
    rows = [
        {name: value for name, value in row.items() if name not in TIMES and not name.startswith("seconds/")}
        for row in read_lines(run_dir.metrics)
    ]
    last = checkpoints(run_dir.checkpoints)[-1]
    state = read_json(last / "state.json")
    del state["incarnation"]  # counts the lives
    weights = {str(path.relative_to(last)): path.read_bytes() for path in last.rglob("*.safetensors")}
    return {
        "metrics": rows,
        "gradients": read_lines(run_dir.gradients),
        "evaluations": read_lines(run_dir.evaluations),
        "state": state,
        "weights": weights,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    carry_on(resumable(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
