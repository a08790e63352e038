"""Metrics and videos to Weights & Biases; `offline` needs neither account nor network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from astrolabe_ray.config.schema import LoggingConfig

log = logging.getLogger(__name__)


class WandbSink:
    """One W&B run. Files go below `run_dir`; `wandb sync` uploads what was written offline.

    `run_id`: the W&B run to go on in. What that one logged past the checkpoint stays there: W&B leaves out
    rows of steps that it has already.

    W&B is a second record. When its process is gone (`ray job stop` ends it before the run has saved),
    one warning is logged and the run goes on without it.
    """

    def __init__(
        self, logging: LoggingConfig, run_dir: Path, config: Mapping[str, Any], *, run_id: str | None = None
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        self._wandb, self._lost = wandb, False
        self._run = wandb.init(
            project=logging.wandb_project,
            name=run_dir.name,
            dir=run_dir,
            mode=logging.wandb if logging.wandb != "disabled" else "disabled",
            config=dict(config),
            id=run_id,
            resume="allow" if run_id else None,
        )
        for name in ("heldout/*", "heldout_gain/*", "heldout_gain_ci95/*", "heldout_win_rate/*"):
            self._run.define_metric(name, step_metric="heldout/step")
        self.run_id: str = self._run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tell(lambda: self._run.log(dict(metrics), step=step))

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        """`videos` maps a caption to an mp4 file. One panel shows them, with a slider over the steps."""
        panel = [self._wandb.Video(str(path), caption=caption) for caption, path in videos.items()]
        self._tell(lambda: self._run.log({"heldout/videos": panel}, step=step))

    def close(self) -> None:
        """Everything is on disk afterwards: `finish` alone leaves the last 32 KiB to W&B's process."""
        self._tell(self._run.finish)
        self._tell(self._wandb.teardown)

    def _tell(self, call: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            with _quiet_asyncio():
                call()
        except (OSError, self._wandb.Error) as reason:
            self._lost = True
            log.warning("W&B is no longer there (%s); metrics.jsonl and the report have everything.", reason)
            with _quiet_asyncio(), suppress(OSError, self._wandb.Error):
                self._wandb.teardown()  # else it would talk to its process again when this one exits


@contextmanager
def _quiet_asyncio() -> Iterator[None]:
    """asyncio reports a broken socket a second time, without saying whose it was."""
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
