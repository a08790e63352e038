"""Writes the tables of docs/presets.md from the presets themselves: `make docs`."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.cli.dry_run import GIB, fullest_bytes
from astrolabe_ray.config.loader import presets_in
from astrolabe_ray.config.memory import memory_by_role
from astrolabe_ray.config.node_plan import place
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig

PAGE = Path(__file__).with_name("presets.md")
CONFIGS = Path(__file__).parents[1] / "configs"
START, END = "<!-- tables: written by `make docs` -->", "<!-- end of tables -->"

COLUMNS = (
    "preset",
    "GPUs",
    "rollout : reward : learner",
    "rewards",
    "step",
    "batch",
    "KL",
    "learning rate",
    "evaluation",
    "fullest GPU",
    "besides",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def page(current: str) -> str:
    """`current` with its tables as the presets are now."""
    before, _, rest = current.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{tables()}\n{END}{after}"


def tables() -> str:
    """A table for each file of full-size presets."""
    parts = []
    for file in sorted(CONFIGS.glob("nft_*.py")):
        configs = [preset() for preset in presets_in(file).values()]
        if all(make_plan(config).num_gpus for config in configs):
            parts.append(f"### `configs/{file.name}`\n\n{HEAD}")
            parts[-1] += "".join(f"\n{table_row(config)}" for config in configs) + "\n"
    return "\n".join(parts)


def table_row(config: RunConfig) -> str:
    """A preset, a cell for each of COLUMNS."""
    plan, rollout = make_plan(config), config.rollout
    reward_gpus = sum(reward.min_replicas * reward.num_gpus for reward in config.rewards)
    split = (rollout.min_actors * rollout.num_gpus, reward_gpus)
    split = (*split, config.learner.num_ranks * config.learner.num_gpus)
    cells = (
        f"`{config.name}`",
        f"{plan.num_gpus:g}",
        " : ".join(f"{gpus:g}" for gpus in split),
        ", ".join(f"{reward.weight:g} {reward.key}" for reward in config.rewards),
        f"{rollout.num_groups} x {rollout.group_size}",
        f"{rollout.batch_size}",
        f"{config.algorithm.kl_coef:g}",
        f"{config.learner.lr:g}",
        f"every {config.evaluation.every_steps}",
        f"{fullest_bytes(memory_by_role(config), place(plan.needs)) / GIB:.0f} GiB",
        ", ".join(besides(config)),
    )
    return f"| {' | '.join(cells)} |"


def besides(config: RunConfig) -> list[str]:
    """What sets a preset apart from its neighbours."""
    notes = []
    if config.model.chunk_frames == 1:
        notes.append("frame by frame")
    if config.model.num_latent_frames != 21:
        notes.append(f"{make_plan(config).num_frames} frames")
    if config.algorithm.train_window_frames is not None:
        notes.append(f"trains on {config.algorithm.train_window_frames} latent frames of them")
    if config.model.lora_init is not None:
        notes.append("starts from a LoRA")
    if config.algorithm.kl_samples != "all":
        notes.append("selective KL")
    return notes


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote {PAGE}")
