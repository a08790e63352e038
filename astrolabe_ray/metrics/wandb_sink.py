"""Metrics and videos to Weights & Biases; `offline` needs neither account nor network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astrolabe_ray.config.schema import LoggingConfig


class WandbSink:
    """One W&B run. Files go below `run_dir`; `wandb sync` uploads what was written offline."""

    def __init__(self, logging: LoggingConfig, run_dir: Path, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=logging.wandb_project,
            name=run_dir.name,
            dir=run_dir,
            mode=logging.wandb if logging.wandb != "disabled" else "disabled",
            config=dict(config),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def log_videos(self, title: str, files: Mapping[str, Path], step: int) -> None:
        """`files` maps a caption to an mp4 file."""
        videos = [self._wandb.Video(str(path), caption=caption) for caption, path in files.items()]
        self._run.log({title: videos}, step=step)

    def close(self) -> None:
        self._run.finish()
