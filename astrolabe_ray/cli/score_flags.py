"""The flags of `score` and of the HTTP door, as they can be typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from astrolabe_ray.cli.wiring import Wiring

EPILOG = """
Examples:

  python launch.py score circle.mp4 --prompt "a small red circle moves left on a black background"

  python launch.py score circle.mp4 --prompt "..." --rewards clip_score,motion_smoothness_score --gpu

  python launch.py score a.mp4 b.mp4 --url http://gpu-head:8100 --token-file token

  python launch.py score --from-run logs/nft/tiny_sprites/RUN --rewards motion_smoothness_score

Without --url and --config everything happens in this process. A video that can't be scored is named, the
others are scored; the exit code is then 1.
"""

Http = Annotated[
    bool, typer.Option("--http", help="Also by HTTP, with a page to drop videos on; needs a token.")
]
Host = Annotated[str, typer.Option(help="Address of the head node to listen at; 0.0.0.0: all of them.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Of the HTTP door.")]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File with the token; without it $ASTROLABE_TOKEN.")
]
Videos = Annotated[
    list[Path] | None, typer.Argument(metavar="[VIDEO]...", help="mp4 files, or npy arrays of uint8.")
]
Prompt = Annotated[
    str | None,
    typer.Option(help="What the videos show; without it, what an mp4 made here says."),
]
Rewards = Annotated[
    str | None,
    typer.Option(
        "--rewards",
        "--reward",
        metavar="KEY,KEY..",
        help="Default: all of --url or --config; else the embedded.",
    ),
]
FromRun = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Score what a run or `generate` saved, and compare the rewards."),
]
Url = Annotated[str | None, typer.Option(help="HTTP door of reward servers elsewhere.")]
ServersOf = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE.py:PRESET", help="Ask the running reward servers of this config."),
]
Gpu = Annotated[bool, typer.Option("--gpu", help="Scorers of this process use the GPU.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def add_score(app: typer.Typer, wiring: Wiring) -> None:
    """The command, declared flag by flag."""

    @app.command(epilog=EPILOG)
    def score(
        videos: Videos = None,
        prompt: Prompt = None,
        rewards: Rewards = None,
        from_run: FromRun = None,
        url: Url = None,
        token_file: TokenFile = None,
        config: ServersOf = None,
        gpu: Gpu = False,
        as_json: AsJson = False,
    ) -> None:
        """Score videos that exist: files, or what a run saved."""
        from astrolabe_ray.cli.score import What
        from astrolabe_ray.cli.score import score as run

        keys = tuple(key for key in (part.strip() for part in (rewards or "").split(",")) if key)
        what = What(tuple(videos or ()), prompt, from_run, keys, url, token_file, config, gpu, as_json)
        run(what, wiring)
