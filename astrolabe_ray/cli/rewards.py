"""`rewards up`, `status`, `scale`, `bench` and `down`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from astrolabe_ray.cli.inputs import check_rewards
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import ClusterConfig
from astrolabe_ray.errors import ConfigError


def up(spec: str, overrides: Sequence[str], wiring: Wiring) -> None:
    """Start what does not run yet.

    Raises ConfigError where there is no cluster to leave servers on, or no room for them.
    """
    config = load(spec, overrides)
    check_rewards(config.rewards, wiring.reward_problems)
    with _joined(config.cluster):
        from astrolabe_ray.runtime.preflight import cluster_room, require_room

        running = wiring.running_rewards(config.rewards)
        needs = [need for need in make_plan(config).needs if need.reward and need.reward not in running]
        require_room(needs, 0, *cluster_room())
        wiring.start_rewards(config)
        _print_servers(wiring)


def status(spec: str, overrides: Sequence[str], wiring: Wiring) -> None:
    """Print every reward server of the cluster."""
    with _joined(load(spec, overrides).cluster):
        _print_servers(wiring)


def scale(name: str, min_replicas: int, max_replicas: int, address: str, wiring: Wiring) -> None:
    """Other bounds for the replicas of a running server.

    Raises ConfigError for a name that is not that of one server, and for bounds that are none.
    """
    with _joined(ClusterConfig(address=address)):
        wiring.scale_rewards(_one_server(name, wiring), min_replicas, max_replicas)
        _print_servers(wiring)


def bench(
    name: str, *, seconds: float, in_flight: int, size: tuple[int, int, int], address: str, wiring: Wiring
) -> None:
    """Print what a running server does under load. Raises ConfigError as `scale` does."""
    with _joined(ClusterConfig(address=address)):
        server = _one_server(name, wiring)
        typer.echo(f"asking {server} for {seconds:g} s, {in_flight} requests at a time, videos of {size}")
        result = wiring.bench_rewards(server, seconds, in_flight, size)
        for line in result.lines():
            typer.echo(line)


def down(spec: str, overrides: Sequence[str], wiring: Wiring) -> None:
    """Stop the reward servers of the config."""
    config = load(spec, overrides)
    with _joined(config.cluster):
        wiring.stop_rewards(config)
        _print_servers(wiring)


@contextmanager
def _joined(cluster: ClusterConfig) -> Iterator[None]:
    import ray

    from astrolabe_ray.runtime.cluster import connect

    connect(cluster, may_start=False)
    try:
        yield
    finally:
        ray.shutdown()


def _one_server(name: str, wiring: Wiring) -> str:
    """The running server that `name` means: its name, the beginning of it, or its scorer."""
    known = [server.name for server in wiring.reward_servers()]
    found = [each for each in known if each == name] or [
        each for each in known if each.startswith((name, f"reward-{name}-"))
    ]
    if len(found) != 1:
        raise ConfigError(
            f"'{name}' means {len(found)} of the reward servers that run; name one of: "
            f"{', '.join(found or known) or 'none runs, see `rewards up`'}"
        )
    return found[0]


def _print_servers(wiring: Wiring) -> None:
    servers = wiring.reward_servers()
    for server in servers:
        for line in server.lines():
            typer.echo(line)
    if not servers:
        typer.echo("no reward servers run on this cluster")
