"""Which runs `checkpoint.resume=auto` looks at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from astrolabe_ray.checkpoint_folders import what_is_wrong, written_atomically
from astrolabe_ray.cli.inputs import find_checkpoint
from astrolabe_ray.cli.train import earlier_checkpoints
from astrolabe_ray.config.schema import CheckpointConfig, LoggingConfig, RewardConfig, RunConfig
from astrolabe_ray.errors import ConfigError


def test_only_runs_of_the_same_name_are_continued_the_newest_first(tmp_path: Path) -> None:
    """A run that goes on from the weights of another one whose name begins the same."""
    names = ["lr_2026.11.02_10.00.00", "lr_2026.11.01_10.00.00", "lr_2_2026.11.03_10.00.00", "lr_low_2026"]
    for name in names:
        (tmp_path / "tiny_sprites" / name / "checkpoints").mkdir(parents=True)
    config = RunConfig(
        name="lr", rewards=(RewardConfig(key="tiny_clip"),), logging=LoggingConfig(log_dir=str(tmp_path))
    )
    assert [folder.parent.name for folder in earlier_checkpoints(config)] == names[:2]


def test_a_run_with_only_damaged_checkpoints_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk that tore the newest run's only checkpoint kept all older ones from being continued."""
    torn, whole, empty = (tmp_path / name / "checkpoints" for name in ("torn", "whole", "empty"))
    for folder in (torn / "checkpoint-7", whole / "checkpoint-4", empty):
        folder.mkdir(parents=True)
    with written_atomically(whole / "checkpoint-5") as draft:
        (draft / "state.json").write_text("{}")
    auto = CheckpointConfig(resume="auto")
    assert find_checkpoint(auto, [empty, torn, whole]) == whole / "checkpoint-5"
    assert "an older run is continued: no checkpoint under" in caplog.text
    assert find_checkpoint(auto, [empty]) is None
    with pytest.raises(ConfigError, match="torn"):
        find_checkpoint(auto, [torn, empty])


def test_a_rename_that_fails_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the old and the new one were deleted; and what a crash left behind blocked the next save."""
    target = tmp_path / "checkpoint-5"
    with written_atomically(target) as draft:
        (draft / "state.json").write_text("old")
    (tmp_path / "tmp-checkpoint-5.replaced").mkdir()
    (tmp_path / "tmp-checkpoint-5.replaced" / "state.json").write_text("left by a crash")
    rename, calls = os.replace, list[str]()

    def fails_second(source: Path, destination: Path) -> None:
        calls.append(str(source))
        if len(calls) == 2:
            raise OSError(116, "Stale file handle")
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails_second)
        with pytest.raises(OSError, match="Stale"), written_atomically(target) as draft:
            (draft / "state.json").write_text("new")
    assert (target / "state.json").read_text() == "old" and what_is_wrong(target) is None
    with written_atomically(target) as draft:
        (draft / "state.json").write_text("new")
    assert (target / "state.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "tmp-checkpoint-5.replaced"]
