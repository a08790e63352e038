"""Training on the last clip of long videos: does the reward of late clips rise?

    python -m benchmarks.long_video                     240 latent frames; about an hour on one core
    python -m benchmarks.long_video --num-steps 2 --num-prompts 2       to see that it works

The embedded model, each group with one history and a clip at its end for each rollout. Then the first and the
last policy make late clips for held-out prompts, from the same seeds. One process without Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from actors.local_pool import LocalRolloutPool
from astrolabe_ray.config.overrides import apply_overrides
from astrolabe_ray.config.recipes import sprites
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.train_window import train_window
from astrolabe_ray.data.group_sampler import prefix_seed, rollout_seed
from astrolabe_ray.data.prompts import load_heldout
from astrolabe_ray.report.statistics import compare
from astrolabe_ray.step_metrics import total_reward
from astrolabe_ray.types import EvalRecord, Evaluation, PublishedPolicy, RolloutRequest
from benchmarks.one_process import Watcher, carry_out, local_roles
from reward_servers.local_pool import LocalRewardPool


class RememberingPool(LocalRolloutPool):
    """Keeps all policies that it was given, oldest first."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.policies: list[PublishedPolicy] = []

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self.policies.append(policy)
        await super().set_policy(policy)


def main(
    num_steps: Annotated[int, typer.Option(min=1, help="Train steps.")] = 44,
    num_latent_frames: Annotated[int, typer.Option(min=12, help="Of a video, a multiple of 3.")] = 240,
    clip: Annotated[int, typer.Option(min=3, help="Latent frames at the end that are trained on.")] = 9,
    num_prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts, eight clips each.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the run.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Reward of late clips before and after training on them."""
    if num_latent_frames % 3 or clip % 3 or clip >= num_latent_frames:
        raise typer.BadParameter(
            "a video and its clip are multiples of 3 latent frames, the clip being shorter"
        )
    config = configured(num_steps, num_latent_frames, clip, seed)
    roles, watcher = local_roles(config), Watcher()
    pool = RememberingPool(config)
    carry_out(config, replace(roles, rollouts=pool), watcher)
    prompts = load_heldout(config.data.heldout_prompts, num_prompts)
    before, after = asyncio.run(late_clips(config, (pool.policies[0], pool.policies[-1]), prompts))
    compared = compare(before, after)
    curve = [row["reward/total"] for row in watcher.steps]
    if as_json:
        typer.echo(json.dumps({"late_clips": compared, "reward_of_steps": curve}))
    else:
        Console().print(as_table(compared))


def configured(num_steps: int, num_latent_frames: int, clip: int, seed: int) -> RunConfig:
    """Four groups of sixteen clips a step: the demo's rollouts, with half as many histories to be made."""
    overrides = [
        f"seed={seed}",
        f"model.num_latent_frames={num_latent_frames}",
        f"algorithm.train_window_frames={clip}",
        "rollout.group_sampling=clip",
        "rollout.num_groups=4",
        "rollout.group_size=16",
        "rollout.max_policy_age=0",
        "evaluation.num_prompts=2",  # of short videos; the late clips are looked at below
        "evaluation.rollouts_per_prompt=1",
        "evaluation.num_latent_frames=9",
        "evaluation.num_shown_videos=0",
    ]
    return apply_overrides(sprites("long-video", num_steps=num_steps), overrides)


async def late_clips(
    config: RunConfig, policies: Sequence[PublishedPolicy], prompts: Sequence[str]
) -> list[Evaluation]:
    """The last clips of long videos, eight for each prompt, by each of `policies` from the same seeds."""
    rollouts, rewards = LocalRolloutPool(config), LocalRewardPool(config.rewards)
    weights = {reward.key: reward.weight for reward in config.rewards}
    window, root = train_window(config, seed=0), 1
    await rollouts.start()
    evaluations = []
    for policy in policies:
        records = []
        for number, prompt in enumerate(prompts):
            request = RolloutRequest(
                group_id=f"late-{number}",
                prompt=prompt,
                seeds=tuple(rollout_seed(root, 0, number, i) for i in range(8)),
                indices=tuple(range(8)),
                views=rewards.views,
                window=window,
                prefix_seed=prefix_seed(root, 0, number),
            )
            made = await rollouts.generate(request, pinned=policy)
            for rollout, score in zip(made, await rewards.score(made), strict=True):
                total = total_reward(score, weights)
                records.append(EvalRecord(prompt, rollout.seed, rollout.index, score.values, total))
        version = policy.manifest.version
        evaluations.append(Evaluation(str(version), version, tuple(records), diversity=0.0))
    await rollouts.stop()
    return evaluations


def as_table(compared: dict[str, dict[str, float]]) -> Table:
    table = Table("reward of late clips", "before", "after", "paired difference")
    for key, row in compared.items():
        difference = f"{row['paired_diff_mean']:+.4f} ± {row['paired_diff_se']:.4f}"
        table.add_row(key, f"{row['reward_before']:.4f}", f"{row['reward_after']:.4f}", difference)
    return table


if __name__ == "__main__":
    typer.run(main)
