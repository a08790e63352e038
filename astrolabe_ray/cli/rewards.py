"""`rewards up`, `rewards status` and `rewards down`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from astrolabe_ray.cli.inputs import check_rewards
from astrolabe_ray.cli.wiring import DoorOptions, Wiring
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig


def up(spec: str, overrides: Sequence[str], wiring: Wiring, door: DoorOptions | None = None) -> None:
    """Start what does not run yet; with `door`, reach it by HTTP.

    Raises ConfigError where there is no cluster to leave servers on, or no room for them.
    """
    config = load(spec, overrides)
    check_rewards(config.rewards, wiring.reward_problems)
    with _joined(config):
        from astrolabe_ray.runtime.preflight import cluster_room, require_room

        running = wiring.running_rewards(config)
        needs = [need for need in make_plan(config).needs if need.reward and need.reward not in running]
        require_room(needs, 0, *cluster_room())
        wiring.start_rewards(config)
        url = wiring.open_door(config, door) if door is not None else None
        _print_servers(wiring)
        if url is not None:
            typer.echo(f"open at {url} for those who have the token")


def status(spec: str, overrides: Sequence[str], wiring: Wiring) -> None:
    """Print every reward server of the cluster."""
    with _joined(load(spec, overrides)):
        _print_servers(wiring)


def down(spec: str, overrides: Sequence[str], wiring: Wiring) -> None:
    """Stop the reward servers of the config."""
    config = load(spec, overrides)
    with _joined(config):
        wiring.close_doors()
        wiring.stop_rewards(config)
        _print_servers(wiring)


@contextmanager
def _joined(config: RunConfig) -> Iterator[None]:
    import ray

    from astrolabe_ray.runtime.cluster import connect

    connect(config.cluster, may_start=False)
    try:
        yield
    finally:
        ray.shutdown()


def _print_servers(wiring: Wiring) -> None:
    servers = wiring.reward_servers()
    for server in servers:
        typer.echo(f"{server.name:40} {server.status:12} replicas: {server.num_replicas}")
    if not servers:
        typer.echo("no reward servers run on this cluster")
