"""Videos made by workers on a real cluster: one dies in the middle, a command is stopped and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from ray.util import list_named_actors

from actors.local_video_pool import LocalVideoPool
from actors.scenes import parse_scenes, plan_scenes
from actors.video_pool import RayVideoPool
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.video import decode_mp4
from astrolabe_ray.runtime.object_store import RayBlobStore
from astrolabe_ray.types import FrameSpec
from astrolabe_ray.video_folder import VideoFolder
from astrolabe_ray.video_run import VideoRun
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoPiece, VideoTask
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
PROMPTS = ("a[20s] | red circle[10s#]", "blue square[30s]", "red[10s] | a[20s]", "circle[20s] | blue[10s#]")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> VideoModelSpec:
    root = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return VideoModelSpec(ModelConfig(path=str(root)), num_threads=1, with_sheets=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster with two CPUs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the same order here and in the workers
    context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()
    torch.set_num_threads(threads)


def tasks() -> list[VideoTask]:
    return [
        VideoTask(
            number,
            0,
            prompt,
            100 + number,
            plan_scenes(parse_scenes(prompt), fps=8, chunk_frames=3, default_chunks=3),
            "same",
        )
        for number, prompt in enumerate(PROMPTS)
    ]


def ray_pool(spec: VideoModelSpec, **options: Any) -> RayVideoPool:
    settings = {"num_workers": 2, "num_cpus": 1, "num_gpus": 0, "placement_timeout_s": 60}
    return RayVideoPool(spec, **settings | {"chunk_timeout_s": 900.0} | options)


@dataclass
class Killer:
    """Kills a worker at its first chunks, and notes what it is told."""

    kills_left: int
    changes: list[int] = field(default_factory=list)
    finished_ids: list[int] = field(default_factory=list)

    def chunks(self, change: int) -> None:
        self.changes.append(change)
        if self.kills_left and sum(change > 0 for change in self.changes) >= 6:
            self.kills_left -= 1
            victim = list_named_actors(all_namespaces=True)[0]
            ray.kill(ray.get_actor(victim["name"], namespace=victim["namespace"]))

    def finished(self, task: VideoTask, record: Mapping[str, Any]) -> None:
        self.finished_ids.append(task.prompt_index)


async def test_two_workers_make_the_videos_of_one_also_when_one_dies(
    cluster: str, spec: VideoModelSpec, tmp_path: Path
) -> None:
    """Work of a dead worker that is lost, doubled or made with other noise."""
    local = LocalVideoPool(spec)
    await local.start()
    expected = VideoFolder(tmp_path / "expected")
    await VideoRun(local, expected, Killer(0), fps=8).make(tasks(), 1)

    pool, killer, folder = ray_pool(spec), Killer(1), VideoFolder(tmp_path / "made")
    await pool.start()
    try:
        assert pool.capacity == 2
        await VideoRun(pool, folder, killer, fps=8).make(tasks(), 1)
    finally:
        await pool.stop()
    assert killer.kills_left == 0
    assert min(killer.changes) < 0, "a batch was begun again"
    assert sum(killer.changes) == sum(task.plan.num_chunks for task in tasks())
    assert sorted(killer.finished_ids) == [0, 1, 2, 3]
    for task in tasks():
        assert folder.video(task).read_bytes() == expected.video(task).read_bytes()
    leave_out = {"seconds"}
    records, others = (
        [{k: v for k, v in record.items() if k not in leave_out} for record in made.read().values()]
        for made in (folder, expected)
    )
    assert records == others


async def test_views_stay_where_they_were_made_until_a_scorer_reads_them(
    cluster: str, spec: VideoModelSpec
) -> None:
    """Pixels of every video would pass through the driver."""

    class Nobody:
        def begin(self, tasks: object) -> None: ...

        def take(self, tasks: object, piece: VideoPiece) -> None: ...

    viewing = VideoModelSpec(spec.model, num_threads=1, views=(FrameSpec(), FrameSpec(num_frames=2)))
    local, pool = LocalVideoPool(viewing), ray_pool(viewing, num_workers=1)
    await local.start()
    await pool.start()
    try:
        expected = await local.make(tasks()[1:2], Nobody())
        made: FinishedVideos = await pool.make(tasks()[1:2], Nobody())
    finally:
        await pool.stop()
    assert made.parts == expected.parts
    for ref, view in zip(made.views[0], expected.views[0], strict=True):
        assert isinstance(ref, ray.ObjectRef)
        assert np.array_equal(RayBlobStore().get(ref), view)  # the worker is gone; the view is not


async def test_a_model_that_is_not_there_ends_the_start(cluster: str, tmp_path: Path) -> None:
    """Thirty replacements would fail one after the other."""
    pool = ray_pool(VideoModelSpec(ModelConfig(path=str(tmp_path))), num_workers=1)
    with pytest.raises(ConfigError, match="lacks"):
        await pool.start()
    await pool.stop()


@pytest.mark.parametrize(
    ("option", "number", "short", "need"),
    [
        ("--workers", "3", "CPU", "3 x video worker (1 CPU)"),
        ("--gpus-per-worker", "1", "GPU", "1 x video worker (1 CPU + 1 GPU)"),
    ],
)
def test_a_cluster_without_room_is_named_before_any_actor_starts(
    cluster: str, tmp_path: Path, option: str, number: str, short: str, need: str
) -> None:
    """The command would wait for room, holding what it got."""
    arguments = ["--prompt", "a", "--samples-per-prompt", "3", "--output-dir", str(tmp_path), option, number]
    done = subprocess.run(
        [sys.executable, "launch.py", "generate", *arguments],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first == f"error: the cluster has too little {short} for this run:"
    assert f"It needs {need}. Use fewer --workers, " in last
    assert list_named_actors(all_namespaces=True) == []


@pytest.mark.slow
def test_a_command_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Everything would be made again, or half a video counted as a whole one."""
    prompts = [f"a {size} red circle moves left on a black background" for size in ("small", "large") * 4]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    command = [sys.executable, "launch.py", "generate", "--prompt-file", str(tmp_path / "prompts.txt")]
    command += ["--workers", "2", "--seconds", "15", "--stream", "--output-dir", str(tmp_path / "out")]
    results = tmp_path / "out" / "results.jsonl"
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["RAY_ADDRESS"] = "local"
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # shells ignore it in background jobs
    )
    end = time.monotonic() + 120
    while not (results.exists() and results.read_text()) and time.monotonic() < end:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    kept = results.read_text().splitlines()
    assert 0 < len(kept) < len(prompts)

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{len(kept)} done before and kept, 0 made again, {len(prompts) - len(kept)} new" in again.stdout
    records = results.read_text().splitlines()
    assert set(kept) <= set(records)
    assert [json.loads(record)["id"] for record in records] == list(range(len(prompts)))
    for number in range(len(prompts)):
        frames, _ = decode_mp4((tmp_path / "out" / "videos" / f"{number:05d}.mp4").read_bytes())
        assert len(frames) == 4 * 29 + 1
