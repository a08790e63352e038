"""The command line: what can be typed. What is done stands in one file per command."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from astrolabe_ray.cli.generate_flags import add_generate
from astrolabe_ray.cli.usage import OneLineErrors
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.overrides import PREFIX
from astrolabe_ray.config.seed_keys import translated
from astrolabe_ray.errors import ConfigError

EPILOG_TRAIN = """
Examples:

  python launch.py train --config configs/nft_tiny.py:tiny_sprites

  python launch.py train --config configs/nft_tiny.py:tiny_sprites --dry-run

  python launch.py train --config configs/nft_tiny.py:tiny_sprites --config.num_steps=20

  python launch.py train --config configs/nft_longlive.py:longlive_video_hpsv3 --shrink

A run writes a folder under logs/ with its report, metrics, videos and checkpoints.
Exit codes: 0 done or stopped on request, 1 failed, 2 the config asks for something that can't be done.
"""

_PASSES_OVERRIDES = {"allow_extra_args": True, "ignore_unknown_options": True}

ConfigOption = Annotated[
    str, typer.Option("--config", metavar="FILE.py:PRESET", help="Config file and the preset in it.")
]

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Base model, as `models list` names it.")]
ServerName = Annotated[
    str, typer.Argument(metavar="NAME", help="As `rewards status` shows it, its beginning, or the scorer.")
]
AddressOption = Annotated[str, typer.Option(help="Address of the Ray cluster; auto: as for `train`.")]
ShrinkOption = Annotated[
    bool,
    typer.Option("--shrink", help="The same run with the embedded model and scorers, on two CPU cores."),
]


def overrides_in(arguments: list[str], known: tuple[str, ...]) -> list[str]:
    """The `--config.KEY=VALUE` of a command line, also when written `--config.KEY VALUE`.

    Keys of the first Astrolabe release are translated, with a note. Raises ConfigError for anything else,
    naming the likeliest of the `known` options.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith(PREFIX):
            meant = difflib.get_close_matches(argument.split("=")[0], known, n=1)
            options = ", ".join((*known, f"{PREFIX}KEY=VALUE"))
            hint = f"did you mean {meant[0]}?" if meant else f"there is {options}"
            raise ConfigError(f"there is no option '{argument}'; {hint}")
        found.append(argument if "=" in argument else f"{argument}={next(rest, '')}")
    overrides, notes = translated(found)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return overrides


def make_app(wiring: Wiring) -> typer.Typer:
    """All commands of launch.py."""
    app = typer.Typer(
        help="Reinforcement learning for causal video diffusion, as separate roles on Ray.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        cls=OneLineErrors,
    )
    _add_train(app, wiring)
    add_generate(app, wiring)
    _add_pretrain(app)
    _add_rewards(app, wiring)
    _add_report(app)
    _add_configs(app)
    _add_models(app)
    return app


def _add_train(app: typer.Typer, wiring: Wiring) -> None:
    @app.command(context_settings=_PASSES_OVERRIDES, epilog=EPILOG_TRAIN)
    def train(
        context: typer.Context,
        config: ConfigOption,
        dry_run: Annotated[
            bool,
            typer.Option(
                "--dry-run", help="Print the plan, the memory it takes and what is not here; start nothing."
            ),
        ] = False,
        shrink: ShrinkOption = False,
    ) -> None:
        """Align a model with rewards. Any option of the config can follow as --config.KEY=VALUE."""
        from astrolabe_ray.cli.train import train as run

        overrides = overrides_in(context.args, ("--config", "--dry-run", "--shrink"))
        run(config, overrides, small=shrink, dry_run=dry_run, wiring=wiring)


def _add_pretrain(app: typer.Typer) -> None:
    @app.command()
    def pretrain(
        parts: Annotated[list[str], typer.Argument(metavar="PART...", help="Parts to train, or `all`.")],
        seed: Annotated[int, typer.Option(min=0, help="Root of all randomness.")] = 0,
        out: Annotated[
            Path, typer.Option(help="Folder of the model; parts that are not trained must be there.")
        ] = Path("logs/pretrained"),
    ) -> None:
        """Train the parts of the embedded sprites model from nothing (minutes to an hour on two cores)."""
        from astrolabe_ray.cli.pretrain import pretrain as run

        run(parts, seed=seed, out=out)


def _add_rewards(app: typer.Typer, wiring: Wiring) -> None:
    rewards = typer.Typer(
        help="Reward servers that outlive a run and are shared by runs.", no_args_is_help=True
    )
    app.add_typer(rewards, name="rewards")

    @rewards.command(context_settings=_PASSES_OVERRIDES)
    def up(context: typer.Context, config: ConfigOption) -> None:
        """Start the reward servers of a config on the cluster of RAY_ADDRESS; keeps what already runs."""
        from astrolabe_ray.cli.rewards import up as run

        run(config, overrides_in(context.args, ("--config",)), wiring)

    @rewards.command(context_settings=_PASSES_OVERRIDES)
    def status(context: typer.Context, config: ConfigOption) -> None:
        """List the reward servers that run."""
        from astrolabe_ray.cli.rewards import status as run

        run(config, overrides_in(context.args, ("--config",)), wiring)

    @rewards.command(context_settings=_PASSES_OVERRIDES)
    def down(context: typer.Context, config: ConfigOption) -> None:
        """Stop the reward servers, also for other runs that use them."""
        from astrolabe_ray.cli.rewards import down as run

        run(config, overrides_in(context.args, ("--config",)), wiring)

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


def _add_report(app: typer.Typer) -> None:
    @app.command()
    def report(
        run_dir: Annotated[Path, typer.Argument(help="Folder of a run, as `train` prints it.")],
    ) -> None:
        """Write the report page of a run again from the files in its folder."""
        from astrolabe_ray.cli.report import report as run

        run(run_dir)


def _add_configs(app: typer.Typer) -> None:
    configs = typer.Typer(help="The presets that there are, and what is in them.", no_args_is_help=True)
    app.add_typer(configs, name="configs")

    @configs.command("list")
    def list_() -> None:
        """Every preset of the shipped config files: GPUs, base model, rewards, what it is."""
        from astrolabe_ray.cli.configs import list_presets

        list_presets()

    @configs.command(context_settings=_PASSES_OVERRIDES)
    def show(
        context: typer.Context,
        preset: Annotated[str, typer.Argument(metavar="FILE.py:PRESET")],
        shrink: ShrinkOption = False,
    ) -> None:
        """Every option of a preset as it would run, overrides included, and the plan that follows."""
        from astrolabe_ray.cli.configs import show_preset

        show_preset(preset, overrides_in(context.args, ("--shrink",)), small=shrink)

    @configs.command()
    def diff(
        first: Annotated[str, typer.Argument(metavar="FILE.py:PRESET")],
        second: Annotated[str, typer.Argument(metavar="FILE.py:PRESET")],
    ) -> None:
        """The options in which two presets differ."""
        from astrolabe_ray.cli.configs import diff_presets

        diff_presets(first, second)

    @configs.command()
    def schema() -> None:
        """The JSON schema of a run's config, for editors and other programs."""
        from astrolabe_ray.cli.configs import print_schema

        print_schema()


def _add_models(app: typer.Typer) -> None:
    models = typer.Typer(
        help="The base models that presets use: what is here, whether it is sound, how to get it.",
        no_args_is_help=True,
    )
    app.add_typer(models, name="models")

    @models.command("list")
    def list_() -> None:
        """Every base model, the files that it needs, whether they are here, and how to fetch them."""
        from astrolabe_ray.cli.models import list_models

        list_models()

    @models.command()
    def check(name: ModelName) -> None:
        """Open every file of a base model: names and shapes of all tensors, not their values."""
        from astrolabe_ray.cli.models import check_model

        check_model(name)

    @models.command()
    def download(name: ModelName) -> None:
        """Fetch the files of a base model from where they are published; goes on where it was cut off."""
        from astrolabe_ray.cli.models import download_model

        download_model(name)

    @models.command("export-lora")
    def export_lora(
        lora: Annotated[Path, typer.Argument(help="Adapter folder, folder of a checkpoint, or file.")],
        out: Annotated[Path, typer.Argument(help="Folder to write, new or empty.")],
        form: Annotated[
            str,
            typer.Option(
                "--format", metavar="peft|seed|diffusers", help="Who is to load it; seed: PEFT, as a pickle."
            ),
        ] = "peft",
    ) -> None:
        """Write a LoRA anew, for those who are to load it."""
        from astrolabe_ray.cli.models import export_lora as run

        run(lora, out, form)
