"""Runs as Ray jobs, on a head of their own with a token: submitted, stopped, and side by side."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
SHRUNK = {
    "rollout.num_groups": 2,
    "rollout.group_size": 4,
    "rollout.batch_size": 4,
    "evaluation.num_prompts": 2,
    "evaluation.rollouts_per_prompt": 2,
    "evaluation.num_shown_videos": 1,
    "logging.wandb": "disabled",
}
PATIENCE_S = 150


@dataclass
class Head:
    """A running head: its jobs, and the processes of its reward servers."""

    client: JobSubmissionClient
    gcs_port: int

    def submit(self, name: str, log_dir: Path, **options: object) -> str:
        settings = SHRUNK | options | {"name": name, "logging.log_dir": log_dir}
        overrides = " ".join(f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items())
        return self.client.submit_job(
            entrypoint=f"python launch.py train --config configs/nft_tiny.py:tiny_sprites {overrides}",
            submission_id=name,
            runtime_env={"working_dir": str(ROOT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "100"}},
        )

    def wait_for(self, job: str, *wanted: JobStatus) -> None:
        self.eventually(job, lambda: self.client.get_job_status(job) in wanted)

    def wait_for_line(self, job: str, words: str) -> None:
        self.eventually(job, lambda: words in self.client.get_job_logs(job))

    def eventually(self, job: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.3)

    def replicas(self) -> set[int]:
        """Process ids of the reward servers of this cluster."""
        found = set()
        for process in psutil.process_iter():
            try:
                if not " ".join(process.cmdline()).startswith("ray::ServeReplica:reward-"):
                    continue
                if any(f":{self.gcs_port}" in word for word in process.parents()[0].cmdline()):
                    found.add(process.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
                continue  # it ended while we looked
        return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="head", dir="/tmp"))  # names of sockets may have 107 characters
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "ray-client-server-port",
        "metrics-export-port",
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    token = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_TMPDIR": str(folder),  # no note of this cluster where others look for one
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    options = [f"--{name}={port}" for name, port in ports.items()]
    sizes = ["--num-cpus=4", f"--object-store-memory={200 << 20}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["ray", "start", "--head", "--block", "--disable-usage-stats", *options, *sizes],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        client = connected(address, token, lambda: (folder / "log").read_text())
        yield Head(client, ports["port"])
    finally:
        family = psutil.Process(process.pid).children(recursive=True)  # SIGTERM would drain for 30 s
        for each in (process, *family):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def connected(address: str, token: str, said: Callable[[], str]) -> JobSubmissionClient:
    """A client, as soon as the head's job server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"})
        except (ConnectionError, RuntimeError):
            assert time.monotonic() < deadline, said()
            time.sleep(0.5)


def run_of(log_dir: Path) -> Path:
    (run,) = (log_dir / "tiny_sprites").iterdir()
    return run


def test_two_jobs_share_their_reward_servers_and_one_is_stopped(head: Head, tmp_path: Path) -> None:
    """A stopped job that loses its step, or takes the other's servers with it; servers started twice."""
    endless, short = tmp_path / "endless", tmp_path / "short"
    first = head.submit("endless", endless, num_steps=10_000)
    head.wait_for_line(first, "evaluate before")
    servers = head.replicas()
    assert len(servers) == 3
    second = head.submit("short", short, num_steps=2)
    head.wait_for(second, JobStatus.SUCCEEDED, JobStatus.FAILED)
    assert head.client.get_job_status(second) == JobStatus.SUCCEEDED, head.client.get_job_logs(second)
    heldout = json.loads((run_of(short) / "summary.json").read_text())["heldout"]
    assert heldout["total"]["num_videos"] == 4
    assert "Report: " in head.client.get_job_logs(second)
    assert head.replicas() == servers

    assert head.client.get_job_status(first) == JobStatus.RUNNING
    head.eventually(first, lambda: (run_of(endless) / "metrics.jsonl").exists())
    head.client.stop_job(first)
    head.wait_for(first, JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED)
    log = head.client.get_job_logs(first)
    assert head.client.get_job_status(first) in (JobStatus.STOPPED, JobStatus.SUCCEEDED), log
    assert "Stopped as asked." in log and "Traceback" not in log
    last_row = (run_of(endless) / "metrics.jsonl").read_text().splitlines()[-1]
    saved = run_of(endless) / "checkpoints" / f"checkpoint-{json.loads(last_row)['step']:.0f}"
    assert (saved / "manifest.json").is_file(), "the step under way was finished and saved"
    assert json.loads((run_of(endless) / "summary.json").read_text())["stopped_early"] is True
    assert head.replicas() == servers


def test_a_mistake_ends_a_job_with_exit_code_two_and_its_line(head: Head, tmp_path: Path) -> None:
    """The job would look like one that crashed."""
    job = head.submit("wrong", tmp_path, num_steps=0)
    head.wait_for(job, JobStatus.FAILED, JobStatus.SUCCEEDED)
    assert "num_steps = 0: must be greater than 0" in head.client.get_job_logs(job)
    assert head.client.get_job_info(job).driver_exit_code == 2
