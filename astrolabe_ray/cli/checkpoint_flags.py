"""What can be typed after `checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as `train` prints it.")]

EPILOG_EXPORT = """
Examples:

  python launch.py checkpoints export logs/nft/tiny_sprites/RUN lora

  python launch.py checkpoints export logs/nft/tiny_sprites/RUN lora --step best --format diffusers

  python launch.py checkpoints export logs/nft/tiny_sprites/RUN lora --step 30 --weights raw

  python launch.py checkpoints export logs/nft/tiny_sprites/RUN out --format seed-checkpoint
"""
EPILOG_PRUNE = """
Examples:

  python launch.py checkpoints prune logs/nft/tiny_sprites/RUN --keep 1            # says what would go

  python launch.py checkpoints prune logs/nft/tiny_sprites/RUN --keep 1 --delete

The newest checkpoint that is valid always stays, and so does the one of the best held-out reward, unless
--no-keep-best is given.
"""


def add_checkpoints(app: typer.Typer) -> None:
    commands = typer.Typer(
        help="The checkpoints of a run: which there are, whether they are sound, taking weights out of them.",
        no_args_is_help=True,
    )
    app.add_typer(commands, name="checkpoints")
    _add_looking(commands)
    _add_export(commands)
    _add_prune(commands)


def _add_looking(commands: typer.Typer) -> None:
    @commands.command("list")
    def list_(run: RunFolder) -> None:
        """Step, size, soundness and held-out reward of every checkpoint. Reads every byte of them."""
        from astrolabe_ray.cli.checkpoints import list_checkpoints

        list_checkpoints(run)

    @commands.command()
    def verify(run: RunFolder) -> None:
        """Compare every file with the checksum it was written with; exits with 1 if any is damaged."""
        from astrolabe_ray.cli.checkpoints import verify_checkpoints

        verify_checkpoints(run)


def _add_export(commands: typer.Typer) -> None:
    @commands.command(epilog=EPILOG_EXPORT)
    def export(
        run: RunFolder,
        out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
        step: Annotated[
            str,
            typer.Option("--step", metavar="N|newest|best", help="Which one; best: held-out reward."),
        ] = "newest",
        weights: Annotated[
            str,
            typer.Option(
                "--weights",
                metavar="ema|raw|old",
                help="Averaged weights, as evaluated last; trained weights; those that sample.",
            ),
        ] = "ema",
        form: Annotated[
            str,
            typer.Option(
                "--format",
                metavar="peft|seed|diffusers|seed-checkpoint",
                help="Who is to load it; seed: PEFT, as a pickle; seed-checkpoint: OUT/checkpoint-STEP with "
                "AdamW's state, which the first Astrolabe release resumes from.",
            ),
        ] = "peft",
    ) -> None:
        """Write the LoRA of a checkpoint for PEFT, the first Astrolabe release or diffusers."""
        from astrolabe_ray.cli.checkpoints import export_checkpoint

        export_checkpoint(run, out, step=step, weights=weights, form=form)


def _add_prune(commands: typer.Typer) -> None:
    @commands.command(epilog=EPILOG_PRUNE)
    def prune(
        run: RunFolder,
        keep: Annotated[int, typer.Option("--keep", min=1, help="Newest checkpoints to keep.")] = 3,
        keep_best: Annotated[
            bool, typer.Option("--keep-best/--no-keep-best", help="Also the one of the best held-out reward.")
        ] = True,
        is_real: Annotated[
            bool, typer.Option("--delete", help="Delete; without it, only say what would be deleted.")
        ] = False,
    ) -> None:
        """Delete old checkpoints, and what killed writers left. Not while the run is writing."""
        from astrolabe_ray.cli.checkpoints import prune_checkpoints

        prune_checkpoints(run, keep=keep, keep_best=keep_best, is_real=is_real)
