"""How a run is asked to stop. In processes of their own, because signals are a process's."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from astrolabe_ray.runtime.jobs import job_notes, stop_grace_s

ROOT = Path(__file__).parents[2]

RUN = """
import asyncio, signal, sys, threading
from astrolabe_ray.runtime.jobs import stop_on_signals

signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as ray.init does

def tell(word):
    print(word, flush=True)

async def run():
    with stop_on_signals() as stop:
        tell("running")
        await stop.wait()
        tell("saving")
        while await asyncio.to_thread(sys.stdin.readline) != "saved\\n":
            pass
    tell("left")
    await asyncio.to_thread(sys.stdin.readline)

asyncio.run(run())
"""


class Run:
    """A process that runs until it is asked to stop, and saves until it is told that this is done."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.expect("running")

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == word + "\n"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@pytest.fixture
def run():
    started = Run()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_ends_with_success(run: Run, number: signal.Signals) -> None:
    """`ray job stop` would lose every step since the last checkpoint, and call the job failed."""
    run.send(number)
    run.expect("saving")
    run.write("saved")
    run.expect("left")
    run.write("")
    assert run.process.wait(10) == 0


def test_being_asked_again_does_not_interrupt_the_saving(run: Run) -> None:
    """`ray job stop` signals the driver, and its process group again: half a checkpoint."""
    run.send(signal.SIGTERM)
    run.expect("saving")
    for _ in range(3):
        run.send(signal.SIGTERM)
    run.write("saved")
    run.expect("left")
    run.write("")
    assert run.process.wait(10) == 0


def test_a_second_ctrl_c_interrupts_a_saving_that_hangs(run: Run) -> None:
    """Nobody could leave but with kill -9."""
    run.send(signal.SIGINT)
    run.expect("saving")
    run.send(signal.SIGINT)
    run.write("")  # the thread that reads the next line would keep the interpreter
    assert run.process.wait(10) != 0
    assert run.process.stderr is not None
    assert "KeyboardInterrupt" in run.process.stderr.read()


def test_afterwards_a_signal_does_what_it_did_before(run: Run) -> None:
    """A second run in this process, or its shutdown, that can't be ended."""
    run.send(signal.SIGTERM)
    run.expect("saving")
    run.write("saved")
    run.expect("left")
    run.send(signal.SIGTERM)
    run.write("")
    assert run.process.wait(10) == 15


def test_the_grace_of_a_ray_job_is_known_and_there_is_none_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling people to save within 3 s when nobody will kill them, or nothing when somebody will."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "600")
    assert stop_grace_s() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert stop_grace_s() == 600
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S")
    assert stop_grace_s() == 3


def test_a_job_without_time_to_save_or_a_place_for_results_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's 3 s are less than a step: the job is killed while it saves, and nobody knew."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    assert job_notes("logs") == []
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    folder, grace = job_notes("logs")
    assert "--config.logging.log_dir" in folder
    assert "after 3 s" in grace and '"RAY_JOB_STOP_WAIT_TIME_S": "600"' in grace
    assert job_notes("/shared/runs") == [grace]
    monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "600")
    assert job_notes("/shared/runs") == []
