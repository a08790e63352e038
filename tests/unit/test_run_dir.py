"""The folder of a run: nothing is lost half-way, nothing is written over."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from astrolabe_ray.report.run_dir import RunDir, append_line, read_json, read_lines, write_bytes, write_json


def test_a_run_has_a_folder_of_its_own_below_its_model(tmp_path: Path) -> None:
    """Two runs of one second that write into each other's files."""
    runs = [RunDir.create(str(tmp_path), "tiny", "demo") for _ in range(3)]
    assert len({run.path for run in runs}) == 3
    for run in runs:
        assert run.path.parent == tmp_path / "tiny"
        assert run.path.name.startswith("demo_2")
        assert run.eval_videos.is_dir() and run.checkpoints.is_dir()


def test_a_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner on another process' working directory would save elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert RunDir.create("logs", "tiny", "demo").path.is_relative_to(tmp_path / "logs")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle of a write must not cost the old summary."""
    path = tmp_path / "deep" / "summary.json"
    write_bytes(path, b"old")

    def disk_full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_written_file_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """Leftovers that a sync tool copies away."""
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]}


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    """Python writes NaN, and then no other program can read the file."""
    content = {"norm": math.nan, "list": [math.inf, 1.0], "inner": {"x": -math.inf, "y": (math.nan,)}}
    known = {"norm": None, "list": [None, 1.0], "inner": {"x": None, "y": [None]}}
    append_line(tmp_path / "lines", content)
    write_json(tmp_path / "file", content)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for name in ("lines", "file"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=refuse) == known


def test_lines_are_added_and_a_torn_last_one_is_left_out(tmp_path: Path) -> None:
    """A run that is killed while it writes must still get its page."""
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    append_line(path, {"step": 1, "text": "two\nlines\u2028and é"})
    append_line(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "los')
    assert read_lines(path) == [{"step": 1, "text": "two\nlines\u2028and é"}, {"step": 2}]
