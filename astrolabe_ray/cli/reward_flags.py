"""What can be typed after `rewards`."""

from __future__ import annotations

from typing import Annotated

import typer

from astrolabe_ray.cli.config_flags import PASSES_OVERRIDES, ConfigOption, overrides_in
from astrolabe_ray.cli.score_flags import Host, Http, Port, TokenFile
from astrolabe_ray.cli.token import read_token
from astrolabe_ray.cli.wiring import DoorOptions, Wiring
from astrolabe_ray.errors import ConfigError

ServerName = Annotated[
    str, typer.Argument(metavar="NAME", help="As `rewards status` shows it, its beginning, or the scorer.")
]
AddressOption = Annotated[str, typer.Option(help="Address of the Ray cluster; auto: as for `train`.")]


def add_rewards(app: typer.Typer, wiring: Wiring) -> None:
    rewards = typer.Typer(
        help="Reward servers that outlive a run and are shared by runs.", no_args_is_help=True
    )
    app.add_typer(rewards, name="rewards")

    @rewards.command(context_settings=PASSES_OVERRIDES)
    def up(
        context: typer.Context,
        config: ConfigOption,
        http: Http = False,
        host: Host = "127.0.0.1",
        port: Port = 8100,
        token_file: TokenFile = None,
    ) -> None:
        """Start the reward servers of a config on the cluster of RAY_ADDRESS; keeps what already runs."""
        from astrolabe_ray.cli.rewards import up as run

        if not http:
            _refuse_door_flags(context)
        door = DoorOptions(host, port, read_token(token_file)) if http else None
        known = ("--config", "--http", "--host", "--port", "--token-file")
        run(config, overrides_in(context.args, known), wiring, door)

    @rewards.command(context_settings=PASSES_OVERRIDES)
    def status(context: typer.Context, config: ConfigOption) -> None:
        """List the reward servers that run."""
        from astrolabe_ray.cli.rewards import status as run

        run(config, overrides_in(context.args, ("--config",)), wiring)

    @rewards.command(context_settings=PASSES_OVERRIDES)
    def down(context: typer.Context, config: ConfigOption) -> None:
        """Stop the reward servers, also for other runs that use them, and close the HTTP door."""
        from astrolabe_ray.cli.rewards import down as run

        run(config, overrides_in(context.args, ("--config",)), wiring)

    _add_measures(rewards, wiring)


def _refuse_door_flags(context: typer.Context) -> None:
    """Raises ConfigError for flags of a door that was not asked for; it would seem to be open."""
    for name in ("host", "port", "token_file"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--{name.replace('_', '-')} is for the HTTP door; it needs --http")


def _add_measures(rewards: typer.Typer, wiring: Wiring) -> None:
    @rewards.command()
    def scale(
        name: ServerName,
        min_replicas: Annotated[int, typer.Option("--min", help="Replicas that stay without any load.")],
        max_replicas: Annotated[int, typer.Option("--max", help="Replicas at most.")],
        address: AddressOption = "auto",
    ) -> None:
        """Let a running server have more or fewer replicas; those that stay are not restarted."""
        from astrolabe_ray.cli.rewards import scale as run

        run(name, min_replicas, max_replicas, address, wiring)

    @rewards.command()
    def bench(
        name: ServerName,
        seconds: Annotated[float, typer.Option(min=1, help="How long to ask.")] = 10,
        in_flight: Annotated[int, typer.Option(min=1, help="Requests of one video at a time.")] = 32,
        size: Annotated[
            tuple[int, int, int], typer.Option(metavar="FRAMES HEIGHT WIDTH", help="Of the drawn videos.")
        ] = (9, 64, 64),
        address: AddressOption = "auto",
    ) -> None:
        """Measure a running server with drawn videos: videos/s, latency, batch sizes."""
        from astrolabe_ray.cli.rewards import bench as run

        run(name, seconds=seconds, in_flight=in_flight, size=size, address=address, wiring=wiring)
