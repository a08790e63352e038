"""A run that was stopped anywhere and resumed is the run that was never stopped, bit for bit.

In synchronous mode and on the CPU. Every random number is a function of the run's seed and of what it is for,
so that no generator's state has to be kept.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from astrolabe_ray.errors import AstrolabeError
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.types import Evaluation, Span
from tests.resumable_run import Recorder, carry_on, left_behind, resumable
from tests.tiny_model import write_tiny_model

STEPS = 4


class Killed(AstrolabeError):
    """Stands for a process that is gone."""


class FallingRecorder(Recorder):
    """Ends the run at its `at`-th event: before the event is told to anybody."""

    def __init__(self, run_dir: RunDir, at: int | None) -> None:
        super().__init__(run_dir)
        self.at, self.events = at, 0

    def span(self, span: Span) -> None:
        self.count()
        super().span(span)

    def evaluated(self, evaluation: Evaluation) -> None:
        self.count()
        super().evaluated(evaluation)

    def count(self) -> None:
        self.events += 1
        if self.events == self.at:
            raise Killed(f"at event {self.at}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    """What the run leaves that nobody stopped, and its number of events."""
    recorders: list[FallingRecorder] = []

    def recorder(run_dir: RunDir) -> FallingRecorder:
        recorders.append(FallingRecorder(run_dir, None))
        return recorders[-1]

    run_dir = carry_on(resumable(model, tmp_path_factory.mktemp("whole"), STEPS), recorder)
    left = left_behind(run_dir)
    assert [row["step"] for row in left["metrics"]] == [1, 2, 3, 4]
    assert [len(row) for row in left["gradients"]] == [11] * 4, "a step and ten kinds of layer"
    assert left["state"]["reference"]["num_refreshes"] > 0, "the reference must have a past"
    assert any(row["kl_loss"] > 0 for row in left["metrics"])
    assert [line["phase"] for line in left["evaluations"]] == ["before", "step-2", "after"]
    return left, recorders[0].events


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    """`prompts.txt` and the folder differ; nothing else may."""
    assert got["metrics"] == want["metrics"]
    assert got["gradients"] == want["gradients"]
    assert got["state"] == want["state"]
    assert got["weights"].keys() == want["weights"].keys()
    assert [name for name in want["weights"] if got["weights"][name] != want["weights"][name]] == []


@pytest.mark.parametrize("seed", range(3))
def test_a_run_stopped_at_random_points_equals_the_one_that_never_was(
    model: Path, tmp_path: Path, whole: tuple[dict[str, Any], int], seed: int
) -> None:
    """Anything that is not in a checkpoint (moments, EMA, reference, shares, prompts) shows up here."""
    want, num_events = whole
    rng = random.Random(seed)
    config = resumable(model, tmp_path, STEPS)
    for _ in range(2):
        with pytest.raises(Killed):
            carry_on(config, lambda run_dir: FallingRecorder(run_dir, rng.randint(1, num_events // 2)))
    got = left_behind(carry_on(config))
    assert_same(got, want)
    told = {line["phase"]: line for line in got["evaluations"]}
    for line in want["evaluations"]:
        if line["phase"] in told:  # those between two checkpoints may be lost, and are never another policy's
            assert told[line["phase"]] == line
    assert {"before", "after"} <= told.keys()


@pytest.mark.slow
def test_a_process_killed_at_random_moments_equals_the_run_that_never_was(
    model: Path, tmp_path: Path, whole: tuple[dict[str, Any], int]
) -> None:
    """SIGKILL gives no time to finish, neither a step nor a file."""
    want, _ = whole
    rng = random.Random(5)
    command = [sys.executable, "-m", "tests.resumable_run", str(model), str(tmp_path), str(STEPS)]
    root, num_killed = Path(__file__).parents[2], 0
    for _ in range(30):
        process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
        _wait_for_setup(process, tmp_path)
        try:
            process.wait(rng.uniform(0.05, 1.0) if num_killed < 5 else 120)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            num_killed += 1
    assert process.returncode == 0
    assert num_killed >= 2
    newest = max((tmp_path / "tiny_sprites").iterdir())
    assert_same(left_behind(RunDir(newest)), want)


def _wait_for_setup(process: subprocess.Popen, folder: Path) -> None:
    """Until this life has a folder and something new in it: a kill while Python loads proves nothing."""
    before = set(folder.glob("tiny_sprites/*/timeline.jsonl"))
    end = time.monotonic() + 120
    while not set(folder.glob("tiny_sprites/*/timeline.jsonl")) - before:
        assert process.poll() is None or process.returncode == 0
        if process.poll() == 0:
            return
        assert time.monotonic() < end
        time.sleep(0.02)
