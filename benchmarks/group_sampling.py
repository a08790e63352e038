"""What a group shares and where the gradient ends: the ablation of Astrolabe (arXiv 2603.17051, table 4a) on
the embedded model.

    python -m benchmarks.group_sampling                            four cases, one seed
    python -m benchmarks.group_sampling --seeds 0,1,2 --num-steps 44

A group's rollouts have the prompt in common (sequence) or also the frames before the window (clip), and the
gradient ends where the window starts (detached) or goes through the frames before it (attached). All else
is the same: window, seeds of the rollouts, steps, held-out prompts. Each case runs in a process of its own,
with the three roles in it and without Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.recipes import sprites
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.report.statistics import compare
from astrolabe_ray.run import Roles
from benchmarks.live_bytes import LiveBytes
from benchmarks.one_process import Watcher, carry_out, in_own_process, local_roles
from learner.local import LocalLearner

GroupSampling = Literal["sequence", "clip"]
CASES: tuple[tuple[GroupSampling, bool], ...] = (
    ("sequence", False),
    ("sequence", True),
    ("clip", False),
    ("clip", True),
)
"""What a group shares, and whether the context is detached."""


@dataclass(frozen=True)
class Result:
    """One run: its held-out reward, and what its train steps took."""

    reward_before: float
    reward_after: float
    paired_diff_mean: float
    paired_diff_se: float
    peak_mb: float  # of the tensors that the steps made, as many as were there at once
    seconds_per_step: float  # counting the tensors included
    losses: tuple[float, ...]  # by step


def main(
    num_steps: Annotated[int, typer.Option(min=1, help="Train steps of each run.")] = 44,
    seeds: Annotated[str, typer.Option(help="Seeds of runs, with commas between them.")] = "0",
    num_latent_frames: Annotated[int, typer.Option(min=6, help="Of a video.")] = 15,
    window: Annotated[int, typer.Option(min=3, help="Latent frames trained on, the last ones.")] = 3,
    num_prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 96,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a run.")] = False,
) -> None:
    """Held-out reward, memory and time of the four cases, for each seed."""
    table = Table("group", "context", "seed", "reward", "paired difference", "peak MB", "s per step")
    for seed in (int(text) for text in seeds.split(",")):
        for group_sampling, detach_context in CASES:
            config = case(group_sampling, detach_context, seed, num_steps, num_latent_frames, window)
            held_out = config.evaluation.model_copy(update={"num_prompts": num_prompts})
            result = in_own_process(measured, config.model_copy(update={"evaluation": held_out}))
            context = "detached" if detach_context else "attached"
            if as_json:
                row = {"group_sampling": group_sampling, "context": context, "seed": seed}
                typer.echo(json.dumps(row | asdict(result)))
            table.add_row(
                group_sampling,
                context,
                str(seed),
                f"{result.reward_before:.3f} -> {result.reward_after:.3f}",
                f"{result.paired_diff_mean:+.4f} ± {result.paired_diff_se:.4f}",
                f"{result.peak_mb:.0f}",
                f"{result.seconds_per_step:.1f}",
            )
    if not as_json:
        Console().print(table)


def case(
    group_sampling: GroupSampling,
    detach_context: bool,
    seed: int,
    num_steps: int,
    num_latent_frames: int,
    window: int,
) -> RunConfig:
    """The demo's run with videos of another length, trained on their last `window` latent frames."""
    config = sprites("group-sampling", num_steps=num_steps)
    updates = {
        "model": {"num_latent_frames": num_latent_frames},
        "rollout": {"group_sampling": group_sampling, "max_policy_age": 0},
        "algorithm": {"train_window_frames": window, "detach_context": detach_context},
        "evaluation": {"num_shown_videos": 0},
    }
    sections = {name: getattr(config, name).model_copy(update=changes) for name, changes in updates.items()}
    return config.model_copy(update={"seed": seed, **sections})


def measured(config: RunConfig) -> Result:
    """Carry `config` out and look at memory and time."""
    roles = local_roles(config)
    observer = Memory(roles)
    carry_out(config, roles, observer)
    total = compare(*observer.evaluations)["total"]
    return Result(
        **{name: total[name] for name in Result.__dataclass_fields__ if name in total},
        peak_mb=observer.peak_mb,
        seconds_per_step=(observer.last_step_s - observer.start_s) / config.num_steps,
        losses=tuple(row["loss"] for row in observer.steps),
    )


class Memory(Watcher):
    """Counts the tensors that the roles make during the train steps, too."""

    def __init__(self, roles: Roles) -> None:
        super().__init__()
        self.peak_mb = self.start_s = self.last_step_s = 0.0
        self._live = LiveBytes()
        pools = cast("LocalRolloutPool", roles.rollouts), cast("LocalLearner", roles.learner)
        self._threads = [pool._thread for pool in pools]

    def phase(self, name: str, total: int) -> None:
        if name == "train":
            self._live.count_here()  # scorers answer in this thread
            for thread in self._threads:
                thread.submit(self._live.count_here)
            self.start_s = time.perf_counter()

    def step(self, metrics: Mapping[str, float]) -> None:
        super().step(metrics)
        self.peak_mb, self.last_step_s = self._live.peak / 1e6, time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
