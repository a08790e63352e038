"""The command line: what can be typed. What is done stands in one file per command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astrolabe_ray.cli.checkpoint_flags import add_checkpoints
from astrolabe_ray.cli.config_flags import PASSES_OVERRIDES, ConfigOption, overrides_in
from astrolabe_ray.cli.generate_flags import add_generate
from astrolabe_ray.cli.reward_flags import add_rewards
from astrolabe_ray.cli.score_flags import add_score
from astrolabe_ray.cli.usage import OneLineErrors
from astrolabe_ray.cli.wiring import Wiring

EPILOG_TRAIN = """
Examples:

  python launch.py train --config configs/nft_tiny.py:tiny_sprites

  python launch.py train --config configs/nft_tiny.py:tiny_sprites --dry-run

  python launch.py train --config configs/nft_tiny.py:tiny_sprites --config.num_steps=20

  python launch.py train --config configs/nft_longlive.py:longlive_video_hpsv3 --shrink

A run writes a folder under logs/ with its report, metrics, videos and checkpoints.
Exit codes: 0 done or stopped on request, 1 failed, 2 the config asks for something that can't be done.
"""

ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Base model, as `models list` names it.")]
ShrinkOption = Annotated[
    bool,
    typer.Option("--shrink", help="The same run with the embedded model and scorers, on two CPU cores."),
]


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
    add_score(app, wiring)
    _add_pretrain(app)
    add_rewards(app, wiring)
    _add_report(app)
    add_checkpoints(app)
    _add_configs(app)
    _add_models(app)
    return app


def _add_train(app: typer.Typer, wiring: Wiring) -> None:
    @app.command(context_settings=PASSES_OVERRIDES, epilog=EPILOG_TRAIN)
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

    @configs.command(context_settings=PASSES_OVERRIDES)
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
