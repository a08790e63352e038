"""Variants of the algorithm at equal samples on the embedded model: reward of held-out prompts after a run.

    python -m benchmarks.algorithms                                            every variant, seed 0
    python -m benchmarks.algorithms --variants default,compat --seeds 0,1,2
    python -m benchmarks.algorithms --figure docs/images/staleness.svg --results results.jsonl

`default`: on-policy. `one-timestep`: trained on one timestep per sample, as `compat` is, where the demo's
recipe has two. `compat`: `algorithm.compat=astrolabe`; `compat-adam`: with the release's clipping of
advantages and epsilon of Adam besides. `stale-4`: each group is sampled by the policy of four steps ago, no
more and no less, and contrasted with that policy. `stale-4-newest`: contrasted with the newest behaviour
policy instead, as if the learner kept no other. All variants see the same prompts and seeds. A run is one
process without Ray; finished runs of `--results` are not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.compat import with_compat
from astrolabe_ray.config.overrides import apply_overrides
from astrolabe_ray.config.recipes import sprites
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.report.charts import Line
from astrolabe_ray.report.statistics import compare
from astrolabe_ray.runtime.local_store import LocalBlobStore
from astrolabe_ray.types import PublishedPolicy, Rollout, RolloutRequest, StepResult, TrainBatch
from benchmarks.figure import standalone
from benchmarks.one_process import Watcher, carry_out, in_own_process, local_roles
from learner.local import LocalLearner
from learner.spec import LearnerSpec

LAGS = (1, 2, 4, 8)
NEWEST = "-newest"
CHANGES = {
    "default": (),
    "one-timestep": ("algorithm.timesteps_per_sample=1",),
    "compat": ("algorithm.compat=astrolabe",),
    "compat-adam": ("algorithm.compat=astrolabe", "algorithm.adv_clip_max=5", "learner.adam_eps=1e-8"),
}
"""What the variants that sample on-policy change in the demo's recipe."""
VARIANTS = (*CHANGES, *(f"stale-{lag}{rule}" for lag in LAGS for rule in ("", NEWEST)))


@dataclass(frozen=True)
class Result:
    """One run. Rewards are means over the held-out videos; `se` is that of the paired difference."""

    variant: str
    seed: int
    num_steps: int
    reward_before: float
    reward_after: float
    paired_diff_mean: float
    paired_diff_se: float
    parts: dict[str, float]  # reward key -> its paired difference
    policy_age: float  # mean over the rollouts trained on


class LaggingPool(LocalRolloutPool):
    """Samples the groups of step n with the policy of step n - `lag`: as stale as `max_policy_age` allows."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._lag, self._num_groups = config.rollout.max_policy_age, config.rollout.num_groups
        self._policies: dict[int, PublishedPolicy] = {}

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self._policies[policy.manifest.version.step] = policy
        await super().set_policy(policy)

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        kind, _, number = request.group_id.partition("-")
        if kind == "train":
            pinned = self._policies[max(0, int(number) // self._num_groups - self._lag)]
        return await super().generate(request, pinned=pinned)


class NewestOnly(LocalLearner):
    """Contrasts every sample with the newest behaviour policy, whoever made it."""

    async def train(self, batch: TrainBatch) -> StepResult:
        newest = self.worker.version
        ranks = tuple(
            tuple(tuple(replace(sample, policy_version=newest) for sample in samples) for samples in rank)
            for rank in batch.ranks
        )
        return await super().train(replace(batch, ranks=ranks))


def main(
    variants: Annotated[str, typer.Option(help="With commas between them.")] = ",".join(VARIANTS),
    seeds: Annotated[str, typer.Option(help="Seeds of runs, with commas between them.")] = "0",
    num_steps: Annotated[int, typer.Option(min=1, help="Train steps of each run.")] = 44,
    num_prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts, four videos each.")] = 96,
    results: Annotated[Path | None, typer.Option(help="JSON lines, one a run; more are added.")] = None,
    figure: Annotated[Path | None, typer.Option(help="SVG of reward against staleness.")] = None,
) -> None:
    """Held-out reward of each variant and seed."""
    done = read(results)
    for seed in map(int, seeds.split(",")):
        for variant in variants.split(","):
            if (variant, seed, num_steps) in done:
                continue
            result = in_own_process(run, configured(variant, seed, num_steps, num_prompts))
            done[variant, seed, num_steps] = result
            if results is not None:
                with results.open("a") as lines:
                    lines.write(json.dumps(result.__dict__) + "\n")
    shown = [result for result in done.values() if result.num_steps == num_steps]
    Console().print(as_table(shown))
    if figure is not None:
        figure.write_text(staleness_chart(shown))


def read(path: Path | None) -> dict[tuple[str, int, int], Result]:
    """The runs in `path`, by variant, seed and steps."""
    if path is None or not path.exists():
        return {}
    rows = [Result(**json.loads(line)) for line in path.read_text().splitlines()]
    return {(row.variant, row.seed, row.num_steps): row for row in rows}


def configured(variant: str, seed: int, num_steps: int, num_prompts: int) -> RunConfig:
    """The demo's run as `variant`. Raises typer.BadParameter for an unknown one."""
    if variant not in VARIANTS:
        raise typer.BadParameter(f"{variant!r} is none of {', '.join(VARIANTS)}")
    lag = 0 if variant in CHANGES else int(variant.removesuffix(NEWEST).removeprefix("stale-"))
    overrides = [f"seed={seed}", f"rollout.max_policy_age={lag}", "evaluation.num_shown_videos=0"]
    overrides += [f"evaluation.num_prompts={num_prompts}"]
    overrides += CHANGES.get(variant, ())
    config = sprites(variant, num_steps=num_steps)
    return apply_overrides(config, with_compat(config, overrides))


def run(config: RunConfig) -> Result:
    """Carry out the variant that `config` is named after."""
    roles, watcher = local_roles(config), Watcher()
    if config.rollout.max_policy_age > 0:
        roles = replace(roles, rollouts=LaggingPool(config))
    if config.name.endswith(NEWEST):
        roles = replace(roles, learner=NewestOnly(LearnerSpec.of(config), LocalBlobStore()))
    carry_out(config, roles, watcher)
    compared = compare(watcher.evaluations[0], watcher.evaluations[-1])
    total = compared.pop("total")
    return Result(
        config.name,
        config.seed,
        config.num_steps,
        *(total[name] for name in ("reward_before", "reward_after", "paired_diff_mean", "paired_diff_se")),
        parts={key: part["paired_diff_mean"] for key, part in compared.items()},
        policy_age=fmean(row["policy_age/mean"] for row in watcher.steps),
    )


def as_table(results: Sequence[Result]) -> Table:
    table = Table("variant", "seed", "policy age", "reward", "paired difference", "of its parts")
    for row in sorted(results, key=lambda row: (VARIANTS.index(row.variant), row.seed)):
        table.add_row(
            row.variant,
            str(row.seed),
            f"{row.policy_age:.1f}",
            f"{row.reward_before:.3f} -> {row.reward_after:.3f}",
            f"{row.paired_diff_mean:+.4f} ± {row.paired_diff_se:.4f}",
            ", ".join(f"{key} {value:+.4f}" for key, value in row.parts.items()),
        )
    return table


def staleness_chart(results: Sequence[Result]) -> str:
    """Gain of the held-out reward (mean of the seeds, band of one standard error) against the policy age."""
    lines = []
    for name, rule in (("the policy that sampled", ""), ("the newest policy", NEWEST)):
        by_lag: dict[int, list[Result]] = {}
        for row in results:
            for lag in (0, *LAGS):
                if row.variant == (f"stale-{lag}{rule}" if lag else "default"):
                    by_lag.setdefault(lag, []).append(row)
        lags = sorted(by_lag)
        gains = tuple(fmean(row.paired_diff_mean for row in by_lag[lag]) for lag in lags)
        spread = tuple(
            fmean(row.paired_diff_se for row in by_lag[lag]) / len(by_lag[lag]) ** 0.5 for lag in lags
        )
        lines.append(Line(f"contrasted with {name}", tuple(map(float, lags)), gains, spread))
    return standalone(lines, x_label="policy age, steps", y_label="held-out reward gained")


if __name__ == "__main__":
    typer.run(main)
