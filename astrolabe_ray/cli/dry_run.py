"""`train --dry-run`: what a run would do and need, on any machine, whatever is installed or downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import typer

from astrolabe_ray.cli.summary import plan_lines, row
from astrolabe_ray.config.memory import Parts, memory_by_role, object_store_need, sizes_by_name
from astrolabe_ray.config.node_plan import Gpu, node_lines, place
from astrolabe_ray.config.plan import Plan
from astrolabe_ray.config.schema import RunConfig

GIB = 2**30
SHOWN_BYTES = 0.05 * GIB
"""Smaller parts are counted and not listed."""


def print_dry_run(config: RunConfig, plan: Plan, missing: Sequence[str]) -> None:
    """Print the plan, where processes could go, the memory of each role, and the lines of `missing`."""
    typer.echo("\n".join(plan_lines(config, plan)))
    gpus = place(plan.needs)
    for number, line in enumerate(node_lines(gpus)):
        typer.echo(row("placement" if number == 0 else "", f"node {number + 1}, {line}"))
    typer.echo("\n".join(memory_lines(config, plan, gpus)))
    for line in missing:
        typer.echo(f"not here: {line}")
    typer.echo("Nothing was started." if missing else "Everything is there. Nothing was started.")


def memory_lines(config: RunConfig, plan: Plan, gpus: Sequence[Gpu]) -> list[str]:
    """Memory of one process of each role by component, of the fullest GPU, and of the object store."""
    store = row("objects", f"at least {_gib(object_store_need(config, plan))} of object store")
    known = sizes_by_name()
    if config.model.base_model not in known:
        unknown = f"unknown: model.base_model '{config.model.base_model}' is none of {', '.join(known)}"
        return [row("memory", unknown), store]
    by_role = memory_by_role(config)
    lines = [
        row("memory" if number == 0 else "", f"{role} {_gib(sum(parts.values()))}{_listed(parts)}")
        for number, (role, parts) in enumerate(by_role.items())
    ]
    if gpus:
        lines.append(row("", fullest_gpu(by_role, gpus)))
    return [*lines, store]


def fullest_gpu(by_role: Mapping[str, Parts], gpus: Sequence[Gpu]) -> str:
    """The largest sum of what shares a GPU. Example: `fullest GPU 31.2 GiB: learner rank`."""
    fullest = max(gpus, key=lambda gpu: _gpu_bytes(by_role, gpu))
    listed = " + ".join(
        f"{count} x {role}" if count > 1 else role for role, count in Counter(fullest.roles).items()
    )
    return f"fullest GPU {_gib(fullest_bytes(by_role, gpus))}: {listed}"


def fullest_bytes(by_role: Mapping[str, Parts], gpus: Sequence[Gpu]) -> float:
    return max(_gpu_bytes(by_role, gpu) for gpu in gpus)


def _gpu_bytes(by_role: Mapping[str, Parts], gpu: Gpu) -> float:
    return sum(sum(by_role[role].values()) for role in gpu.roles)


def _listed(parts: Parts) -> str:
    """The largest parts first."""
    shown = sorted((item for item in parts.items() if item[1] >= SHOWN_BYTES), key=lambda item: -item[1])
    if "unknown" in parts:
        return ", its models not counted"
    return ": " + ", ".join(f"{name} {size / GIB:.1f}" for name, size in shown) if shown else ""


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= SHOWN_BYTES else f"{size / 2**20:.0f} MiB"
