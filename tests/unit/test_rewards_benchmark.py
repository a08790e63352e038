"""What the benchmark of rewards compares with, and what it counts."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.types import PolicyVersion, Rollout, Scores
from benchmarks import rewards as benchmark
from benchmarks.plain_rewards import PlainTinyClip
from reward_servers.scorers import ScorerSetup, card_of, load_scorer


def test_the_plain_way_gives_the_scores_of_the_server() -> None:
    """A comparison of speed between two different computations."""
    clips, prompts = benchmark.drawn(8)
    views = [derive_view(clip, card_of("tiny_clip").reading("tiny_clip").frames) for clip in clips]
    served = load_scorer("tiny_clip", ScorerSetup()).score(np.stack(views), prompts)["tiny_clip"]
    plain = PlainTinyClip()
    ours = [plain.score(torch.from_numpy(v).float() / 255, p) for v, p in zip(views, prompts, strict=True)]
    assert np.ptp(ours) > 0.01, "videos that score alike could not tell"
    np.testing.assert_allclose(served, ours, atol=2e-5)


class Pool:
    """Answers after 20 ms, whatever it is asked for."""

    def __init__(self) -> None:
        self.num_asked = self.most_asked = self.num_waiting = 0

    async def score(self, rollouts: tuple[Rollout, ...]) -> list[Scores]:
        self.num_waiting += len(rollouts)
        self.num_asked += len(rollouts)
        self.most_asked = max(self.most_asked, self.num_waiting)
        await asyncio.sleep(0.02)
        self.num_waiting -= len(rollouts)
        return [Scores({"key": 0.0}, 0.0)] * len(rollouts)


def test_the_load_is_as_many_videos_at_once_as_it_says() -> None:
    """Fewer would measure a server that waits. 3 askers of 4 videos: 12 at any time."""
    pool = Pool()
    rollouts = [Rollout("g", i, "p", i, PolicyVersion(0), "a", None, ()) for i in range(8)]
    began = time.perf_counter()
    waits, took_s = asyncio.run(benchmark.asked(pool, rollouts, 4, 3, 0.1))  # type: ignore[arg-type]
    assert pool.most_asked == 12
    assert len(waits) * 4 == pool.num_asked
    assert min(waits) >= 0.019 and 0.1 <= took_s <= time.perf_counter() - began


def test_speed_is_counted_in_videos() -> None:
    """By hand: 10 requests of 4 videos in 2 s are 20 a second; 5 batches of 4 and 1 of 16: 6 on average."""
    found = benchmark.speed([0.1] * 9 + [0.5], 4, 2.0, Counter({4: 5, 16: 1}), 0.4)
    assert (found.videos_per_s, found.mean_batch, found.largest_batch) == (20.0, 6.0, 16)
    assert found.cpu_ms == pytest.approx(10)
    assert found.p50_ms == pytest.approx(100)
    assert found.p99_ms == pytest.approx(464)  # 0.1 + 0.4 x 0.91, between the last two of ten


def test_other_scores_end_the_benchmark() -> None:
    """A fast way to a wrong number."""
    with pytest.raises(AssertionError, match="'batched' scores otherwise"):
        benchmark.require_equal({"plain": [0.5, 0.6], "batched": [0.5, 0.61]})


def test_help_tells_what_is_compared() -> None:
    """Numbers of ways that nobody explains."""
    shown = CliRunner().invoke(benchmark.app, ["--help"]).output
    ways = ["plain", *(way.name for way in benchmark.ways_of("tiny_clip", 16))]
    assert all(f"\n      {way}  " in shown for way in ways), shown


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(900)
def test_batches_score_twice_as_many_videos_as_one_by_one() -> None:
    """The point of a server that batches; measured on both scorers through Ray Serve.

    What computes is counted in CPU time, which hardly depends on what else the machine does.
    """
    done = CliRunner().invoke(benchmark.app, ["--seconds", "4", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.strip().splitlines()[-1])
    cpu_ms = {way: row["cpu_ms"] for way, row in found["tiny_clip"].items()}
    assert cpu_ms["groups"] < cpu_ms["one by one"] / 2, cpu_ms
    assert cpu_ms["groups"] < cpu_ms["plain"] / 2, cpu_ms
    speeds = {way: row["videos_per_s"] for way, row in found["device"].items()}
    assert speeds["groups"] > 2 * max(speeds["one by one"], speeds["plain"]), speeds
    assert speeds["4 replicas"] > 2 * speeds["groups"], speeds
    assert all(found[scorer]["groups"]["largest_batch"] == 16 for scorer in found if scorer != "load")
