"""Which runs `checkpoint.resume=auto` looks at."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.cli.train import earlier_checkpoints
from astrolabe_ray.config.schema import LoggingConfig, RewardConfig, RunConfig


def test_only_runs_of_the_same_name_are_continued_the_newest_first(tmp_path: Path) -> None:
    """A run that goes on from the weights of another one whose name begins the same."""
    names = ["lr_2026.11.02_10.00.00", "lr_2026.11.01_10.00.00", "lr_2_2026.11.03_10.00.00", "lr_low_2026"]
    for name in names:
        (tmp_path / "tiny_sprites" / name / "checkpoints").mkdir(parents=True)
    config = RunConfig(
        name="lr", rewards=(RewardConfig(key="tiny_clip"),), logging=LoggingConfig(log_dir=str(tmp_path))
    )
    assert [folder.parent.name for folder in earlier_checkpoints(config)] == names[:2]
