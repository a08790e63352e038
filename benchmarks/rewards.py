"""Reward servers against scoring video after video in the trainer's process, in one run.

    python -m benchmarks.rewards                          both scorers, 10 s for each way
    python -m benchmarks.rewards --scorers tiny_clip --threads 2 --json

`tiny_clip` computes on the CPU. `device` only waits, 30 ms for a forward and 10 ms for each video in it, as a
scorer does whose model is on a GPU; each replica has a device of its own. Ways:

    plain        in this process, one video at a time, through Pillow, four frames in a forward
    one by one   a server that puts one video in a forward, asked for one video per request
    batched      a server that puts up to --batch requests in a forward, the same requests
    groups       the same server, asked for --batch videos per request, as a run asks for its groups
    N replicas   `groups` with N replicas, for `device`

Servers are Serve applications of a local Ray cluster, asked through the pool that runs use. Their videos lie
in the object store; `plain` has its own as floats in memory. All ways give the same scores, which is checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import psutil
import ray
import torch
import typer
from ray import serve
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.data.sprites.captions import heldout_captions
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.types import PolicyVersion, Rollout
from benchmarks.plain_rewards import PlainDevice, PlainTinyClip
from benchmarks.simulated_device import KEY as DEVICE
from reward_servers.app import ServerSpec
from reward_servers.deploy import reports_of
from reward_servers.pool import ServeRewardPool
from reward_servers.scorers import setup_of

KEYS = {"tiny_clip": "tiny_clip", "device": DEVICE}
REPLICAS = (1, 2, 4)
NUM_VIDEOS = 64
"""Different ones, asked for again and again."""
TOLERANCE = 1e-4


class Plain(Protocol):
    def score(self, video: Tensor, prompt: str) -> float: ...


@dataclass(frozen=True)
class Way:
    """How a server is asked. Example: `Way("groups", max_batch=16, per_request=16, num_replicas=1)`."""

    name: str
    max_batch: int
    per_request: int
    num_replicas: int = 1


@dataclass(frozen=True)
class Speed:
    """One way of scoring; latencies are from request to answer."""

    videos_per_s: float
    p50_ms: float
    p99_ms: float
    mean_batch: float
    largest_batch: int
    cpu_ms: float  # of this process and the replicas per video; hardly changed by what else runs here


def main(
    scorers: Annotated[str, typer.Option(help="Some of tiny_clip, device.")] = "tiny_clip,device",
    seconds: Annotated[float, typer.Option(min=0.1, help="For each way.")] = 10.0,
    batch: Annotated[int, typer.Option(min=2, help="Videos in a forward, at most.")] = 16,
    in_flight: Annotated[int, typer.Option(min=1, help="Videos asked for at once, per replica.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, in this process and in replicas.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Videos per second, latency and batch sizes of each way, and all speeds against the plain one."""
    torch.set_num_threads(threads)
    found = {}
    with local_cluster():
        for name in scorers.split(","):
            clips, prompts = drawn(NUM_VIDEOS)
            reward = RewardConfig(key=KEYS[name], num_cpus=threads, max_in_flight=in_flight)
            views = [derive_view(clip, view_of(reward)) for clip in clips]
            speeds, scores = {}, {}
            speeds["plain"], scores["plain"] = plainly(plain_scorer(name, reward), views, prompts, seconds)
            for way in ways_of(name, batch):
                speeds[way.name], scores[way.name] = asyncio.run(
                    served(reward, way, views, prompts, seconds=seconds, in_flight=in_flight)
                )
            require_equal(scores)
            found[name] = speeds
    if as_json:
        rows = {name: {way: asdict(s) for way, s in speeds.items()} for name, speeds in found.items()}
        typer.echo(json.dumps({**rows, "load": os.getloadavg()}))
        return
    for name, speeds in found.items():
        show(speeds, f"{name}, batches of up to {batch}, {in_flight} videos in flight, {threads} threads")
    typer.echo(f"load of the machine in the last minute: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def ways_of(name: str, batch: int) -> Sequence[Way]:
    ways = [Way("one by one", 1, 1), Way("batched", batch, 1), Way("groups", batch, batch)]
    if name == "device":
        ways += [Way(f"{n} replicas", batch, batch, n) for n in REPLICAS if n > 1]
    return ways


def plain_scorer(name: str, reward: RewardConfig) -> Plain:
    if name == "tiny_clip":
        return PlainTinyClip()
    options = setup_of(reward).options
    return PlainDevice(float(options["forward"]), float(options["video"]))


def drawn(count: int) -> tuple[np.ndarray, list[str]]:
    """Videos of sprites with their captions, a few captions for all of them, as in groups."""
    captions = list(heldout_captions()[:4]) * (count // 4)
    return render_clips(captions, seed=1), [str(caption) for caption in captions]


def view_of(reward: RewardConfig) -> Any:
    (view,) = ServeRewardPool([reward]).views
    return view


@contextmanager
def local_cluster() -> Iterator[None]:
    """CPUs are counted as if there were enough: what only waits needs none."""
    ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def plainly(
    scorer: Plain, views: Sequence[np.ndarray], prompts: Sequence[str], seconds: float
) -> tuple[Speed, list[float]]:
    """Videos one after another for `seconds`, and the score of each different one."""
    videos = [torch.from_numpy(view).float() / 255 for view in views]
    scores = [scorer.score(video, prompt) for video, prompt in zip(videos, prompts, strict=True)]
    waits: list[float] = []
    began, cpu_began = time.perf_counter(), cpu_seconds([os.getpid()])
    while (asked := time.perf_counter()) < began + seconds:
        number = len(waits) % len(videos)
        scorer.score(videos[number], prompts[number])
        waits.append(time.perf_counter() - asked)
    took_s, cpu_s = time.perf_counter() - began, cpu_seconds([os.getpid()]) - cpu_began
    return speed(waits, 1, took_s, Counter({1: len(waits)}), cpu_s), scores


async def served(
    reward: RewardConfig,
    way: Way,
    views: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    seconds: float,
    in_flight: int,
) -> tuple[Speed, list[float]]:
    """A server of its own, asked for `seconds`, and its score of each different video."""
    bounds = {"min_replicas": way.num_replicas, "max_replicas": way.num_replicas}
    change = {**bounds, "max_batch_size": way.max_batch, "max_in_flight": in_flight * way.num_replicas}
    changed = reward.model_copy(update=change)
    pool = ServeRewardPool([changed], keep_servers=False, client="benchmark")
    await pool.start()
    rollouts = [
        Rollout("benchmark", i, prompt, i, PolicyVersion(0), "benchmark", None, (ray.put(view),))
        for i, (view, prompt) in enumerate(zip(views, prompts, strict=True))
    ]
    scores = [score.values[reward.key] for score in await pool.score(rollouts)]
    name = ServerSpec.of(changed).app_name
    before, pids = await asyncio.to_thread(state_of, name)
    pids, cpu_before = [*pids, os.getpid()], cpu_seconds([*pids, os.getpid()])
    num_askers = max(1, in_flight * way.num_replicas // way.per_request)
    waits, took_s = await asked(pool, rollouts, way.per_request, num_askers, seconds)
    cpu_s = cpu_seconds(pids) - cpu_before
    after, _ = await asyncio.to_thread(state_of, name)
    await pool.stop()
    return speed(waits, way.per_request, took_s, after - before, cpu_s), scores


async def asked(
    pool: ServeRewardPool, rollouts: Sequence[Rollout], per_request: int, num_askers: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds that each answer took, and all of them together."""
    waits: list[float] = []
    began = time.perf_counter()

    async def one_after_another(first: int) -> None:
        while (now := time.perf_counter()) < began + seconds:
            start = (first + len(waits)) * per_request % len(rollouts)
            await pool.score((*rollouts, *rollouts)[start : start + per_request])
            waits.append(time.perf_counter() - now)

    await asyncio.gather(*map(one_after_another, range(num_askers)))
    return waits, time.perf_counter() - began


def state_of(name: str) -> tuple[Counter[int], list[int]]:
    """Sizes of the batches that all replicas have scored since they started, and their process ids."""
    reports = reports_of(name)
    sizes: Counter[int] = sum((Counter(report.batch_sizes) for report in reports), Counter())
    return sizes, [report.pid for report in reports]


def cpu_seconds(pids: Sequence[int]) -> float:
    """What these processes have computed so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def speed(
    waits: Sequence[float], per_request: int, seconds: float, sizes: Counter[int], cpu_s: float
) -> Speed:
    """From the seconds that each request took."""
    p50, p99 = np.quantile(waits, (0.5, 0.99))
    return Speed(
        videos_per_s=len(waits) * per_request / seconds,
        p50_ms=1000 * float(p50),
        p99_ms=1000 * float(p99),
        mean_batch=sum(size * count for size, count in sizes.items()) / max(1, sizes.total()),
        largest_batch=max(sizes, default=0),
        cpu_ms=1000 * cpu_s / (len(waits) * per_request),
    )


def require_equal(scores: dict[str, list[float]]) -> None:
    """A comparison of speed between two different computations says nothing."""
    for name, column in scores.items():
        difference = float(np.abs(np.subtract(column, scores["plain"])).max())
        assert difference < TOLERANCE, f"'{name}' scores otherwise than 'plain': {difference:.1e}"


def show(speeds: dict[str, Speed], title: str) -> None:
    """A row for each way, with its speed against the plain one and against one by one."""
    columns: dict[str, Callable[[Speed], str]] = {
        "videos / s": lambda each: f"{each.videos_per_s:.1f}",
        "/ plain": lambda each: f"{each.videos_per_s / speeds['plain'].videos_per_s:.2f}",
        "/ one by one": lambda each: f"{each.videos_per_s / speeds['one by one'].videos_per_s:.2f}",
        "p50 ms": lambda each: f"{each.p50_ms:.0f}",
        "p99 ms": lambda each: f"{each.p99_ms:.0f}",
        "batch": lambda each: f"{each.mean_batch:.1f}",
        "largest": lambda each: str(each.largest_batch),
        "CPU ms": lambda each: f"{each.cpu_ms:.1f}",
    }
    table = Table(Column(no_wrap=True), *columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for way, each in speeds.items():
        table.add_row(way, *(cell(each) for cell in columns.values()))
    Console().print(table)


app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command(help=(__doc__ or "").replace("\n\n", "\n\n\b\n"))(main)  # \b: lines as they are

if __name__ == "__main__":
    app()
