"""`launch.py` against real clusters: one that is too small, and a whole run on one that is large enough."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.reward_replicas import replica_pids

ROOT = Path(__file__).parents[2]
TINY = "configs/nft_tiny.py:tiny_sprites"
SMALL = (
    "num_steps=2",
    "rollout.num_groups=2",
    "rollout.group_size=4",
    "rollout.batch_size=4",
    "evaluation.num_prompts=2",
    "evaluation.rollouts_per_prompt=2",
    "evaluation.num_shown_videos=1",
    "checkpoint.every_steps=1",
    "logging.wandb=disabled",
)


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def train(*options: str) -> subprocess.CompletedProcess[str]:
    return launch("train", "--config", TINY, *(f"--config.{option}" for option in options))


@pytest.fixture
def one_cpu_cluster() -> Iterator[str]:
    """Address of a cluster with a single CPU."""
    context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_a_cluster_that_is_too_small_is_named_before_any_actor_starts(
    one_cpu_cluster: str, log_dir: Path
) -> None:
    """The run would wait for room for ever, holding what it got."""
    done = train(*SMALL, f"cluster.address={one_cpu_cluster}", f"logging.log_dir={log_dir}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: the cluster has too little CPU for this run")
    assert "1 x rollout actor (0.5 CPU)" in done.stderr
    assert ray.util.list_named_actors(all_namespaces=True) == []
    assert ray.available_resources()["CPU"] == 1


def test_reward_servers_are_started_once_listed_and_stopped_by_hand(one_cpu_cluster: str) -> None:
    """Servers that nobody can manage; and handles left open, whose routers ask on after Ray was left."""

    def rewards(command: str) -> list[str]:
        done = launch("rewards", command, "--config", TINY, f"--config.cluster.address={one_cpu_cluster}")
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line for line in done.stdout.splitlines() if not line.startswith("  ")]
        return [" ".join(line.split()[:2]) for line in lines]

    assert rewards("status") == ["no reward"]
    started = rewards("up")
    assert [line.split("-")[1] for line in started] == ["image_quality", "motion_quality", "tiny_clip"]
    assert all(line.endswith(" RUNNING") for line in started)
    before = replica_pids()
    assert rewards("up") == rewards("status") == started
    assert replica_pids() == before
    assert rewards("down") == ["no reward"]


@pytest.mark.slow
def test_a_running_server_is_scaled_and_measured_by_name(one_cpu_cluster: str) -> None:
    """Its preset may be that of another person; a restart would load every model again."""
    up = launch("rewards", "up", "--config", TINY, f"--config.cluster.address={one_cpu_cluster}")
    assert up.returncode == 0, up.stderr
    before = replica_pids()
    at = f"--address={one_cpu_cluster}"
    done = launch("rewards", "scale", "motion_quality", "--min", "1", "--max", "2", at)
    assert "  replicas 1/1 (1 to 2) " in done.stdout, done.stdout + done.stderr
    done = launch("rewards", "bench", "reward-tiny_clip", "--seconds=1", "--in-flight=8", at)
    assert re.search(r"^\d+\.\d+ videos/s by 1 replicas$", done.stdout, re.MULTILINE), (
        done.stdout + done.stderr
    )
    done = launch("rewards", "scale", "reward", "--min=1", "--max=1", at)
    assert (done.returncode, done.stderr.split(";")[0]) == (
        2,
        "error: 'reward' means 3 of the reward servers that run",
    )
    assert replica_pids() >= before


def test_an_address_without_a_cluster_is_named(log_dir: Path) -> None:
    """Ray's own message is a page of traceback after a minute."""
    done = train(*SMALL, "cluster.address=127.0.0.1:1", f"logging.log_dir={log_dir}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: can't join the Ray cluster at")
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_leaves_its_report_metrics_videos_and_checkpoint(log_dir: Path) -> None:
    """The roles may each work alone and still not together."""
    done = train(*SMALL, "cluster.address=local", f"logging.log_dir={log_dir}")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (log_dir / "tiny_sprites").iterdir()
    assert done.stdout.splitlines()[-1] == f"Report: {run / 'report.html'}"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["num_rollouts"] == 8 for row in steps)
    assert all(row["grad_norm"] > 0 for row in steps)
    heldout = json.loads((run / "summary.json").read_text())["heldout"]
    assert heldout["total"]["num_videos"] == 4
    assert {path.parent.name for path in (run / "eval_videos").rglob("*.mp4")} == {"before", "after"}
    assert (run / "checkpoints" / "checkpoint-2" / "lora" / "adapter_model.safetensors").is_file()
    assert json.loads((run / "config.json").read_text())["num_steps"] == 2


@pytest.mark.slow
def test_a_resumed_run_is_compared_with_the_true_start(log_dir: Path) -> None:
    """A run that was stopped in the night would show what it learned since the morning."""
    done = train(*SMALL, "cluster.address=local", f"logging.log_dir={log_dir}")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (log_dir / "tiny_sprites").iterdir()
    before = json.loads((run / "summary.json").read_text())["heldout"]["total"]["reward_before"]

    again = train(
        *SMALL, "num_steps=3", "checkpoint.resume=auto", "cluster.address=local", f"logging.log_dir={log_dir}"
    )
    assert again.returncode == 0, again.stdout + again.stderr
    (resumed,) = set((log_dir / "tiny_sprites").iterdir()) - {run}
    rows = (resumed / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in rows] == [1, 2, 3]
    whole = json.loads((resumed / "summary.json").read_text())["heldout"]["total"]
    assert whole["reward_before"] == before
    assert json.loads((resumed / "origin.json").read_text())["run"] == str(run)
