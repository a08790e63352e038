"""What a replica of a reward server and its client promise each other: fairness, backpressure, health."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from astrolabe_ray.errors import DataFailure, InfraFailure, PayloadsLost, ServerBusy
from astrolabe_ray.server_status import ServerStatus
from astrolabe_ray.types import FrameSpec, PolicyVersion, Rollout
from reward_servers import app, batch_scoring, deploy, known_video, window
from reward_servers import pool as pool_module
from reward_servers.app import RewardServer, ServerSpec, application
from reward_servers.batch_scoring import ScoreRequest
from reward_servers.fair_queue import FairQueue
from reward_servers.lease import Lease
from reward_servers.pool import ServeRewardPool
from reward_servers.scorers import ScorerSetup
from reward_servers.usage import ReplicaReport, Usage, clients_of, quantiles, videos_per_s
from reward_servers.window import Window

SECONDS = 0.05
POISON = 13


class Scripted:
    """Says `answer` of every video, after SECONDS unless it is the known one; remembers what it has seen."""

    card = ScorerCard(
        "scripted",
        {"level": Reading(FrameSpec(num_frames=2)), "gray": Reading(FrameSpec(2, grayscale=True))},
        "MIT",
    )
    answer: float | Exception = 1.0
    fits = 1000  # videos
    held: ClassVar[list[weakref.ref[np.ndarray]]] = []  # by forwards that failed
    gate: threading.Event  # closed: it goes on scoring
    batches: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, setup: ScorerSetup) -> None: ...

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        type(self).batches.append(videos.shape)
        if videos.shape[-1] < known_video.SMALL[-1]:
            assert self.gate.wait(10), "nobody opened the gate"
            time.sleep(SECONDS)
        assert all(each() is None for each in self.held), "an array of the failed forward is still held"
        if len(videos) > self.fits:
            layers = np.zeros(1)
            type(self).held.append(weakref.ref(layers))
            raise MemoryError("CUDA out of memory")
        if (videos == POISON).all(axis=(1, 2, 3, 4)).any():
            raise RuntimeError("CUDA error")
        if isinstance(self.answer, Exception):
            raise self.answer
        return {"level": np.full(len(videos), self.answer, np.float32)}


REWARD = RewardConfig(key=f"{__name__}:Scripted/level", max_batch_size=4)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "answer", 1.0)
    monkeypatch.setattr(Scripted, "batches", [])
    monkeypatch.setattr(Scripted, "fits", 1000)
    monkeypatch.setattr(Scripted, "held", [])
    monkeypatch.setattr(Scripted, "gate", threading.Event(), raising=False)
    Scripted.gate.set()
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", 0.002)


def request(client: str, num_videos: int = 1) -> ScoreRequest:
    return ScoreRequest("r", tuple(Ref() for _ in range(num_videos)), ("p",) * num_videos, client)  # type: ignore


class Ref:
    """An object reference whose array is there."""

    def future(self) -> concurrent.futures.Future[np.ndarray]:
        future: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        future.set_result(np.zeros((2, 3, 4, 4), np.uint8))
        return future


async def until_busy(server: RewardServer) -> None:
    while server._busy_since is None:
        await asyncio.sleep(0.001)


def replica() -> RewardServer:
    return RewardServer(ServerSpec.of(REWARD))


def test_a_replica_is_ready_after_its_largest_batch_has_been_scored() -> None:
    """The first requests would pay for kernels and memory, or find that the batch does not fit."""
    replica()
    assert Scripted.batches[:2] == [(4, 2, 3, 64, 64)] * 2, "the largest batch of both views"


def test_a_scorer_whose_model_is_elsewhere_is_not_asked_by_its_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question would cost money, and the answers of a chat model change."""
    monkeypatch.setattr(Scripted, "card", replace(Scripted.card, asks_elsewhere=True))
    asyncio.run(replica().check_health())
    assert Scripted.batches == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (math.nan, "gave level nan"),
        (RuntimeError("CUDA error: an illegal memory access"), "illegal memory access"),
        (1.05, "level of view 0 was 1 and is 1.05; level of view 1 was 1 and is 1.05"),
    ],
)
def test_a_replica_that_no_longer_scores_as_it_did_is_not_healthy(
    answer: float | Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that gives wrong numbers answers a ping as well as any other."""
    monkeypatch.setattr(app, "VERIFY_EVERY_S", 0.0)

    async def check() -> None:
        server = replica()
        await server.check_health()
        Scripted.answer = answer
        for _ in range(2):
            with pytest.raises((DataFailure, RuntimeError), match=message):
                await server.check_health()
        Scripted.answer = 1.001
        await server.check_health()

    asyncio.run(check())


def test_a_known_video_is_not_scored_more_often_than_needed() -> None:
    """Serve asks every few seconds; a large model would do little else."""
    server = replica()
    seen = len(Scripted.batches)
    asyncio.run(server.check_health())
    assert len(Scripted.batches) == seen


def test_a_replica_that_is_stuck_in_a_batch_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wedged kernel holds the scorer for ever, and a check that waits for it as well."""
    monkeypatch.setattr(app, "STUCK_AFTER_S", 0.01)

    async def check() -> None:
        server = replica()
        Scripted.gate.clear()
        asked = asyncio.create_task(server.score(request("a")))
        await until_busy(server)
        await asyncio.sleep(0.02)
        with pytest.raises(RuntimeError, match="busy with one batch"):
            await server.check_health()
        Scripted.gate.set()
        assert await asked == {"level": [1.0]}
        await server.check_health()

    asyncio.run(asyncio.wait_for(check(), 30))


def test_a_replica_answers_other_questions_while_it_scores() -> None:
    """Scoring in the event loop would stop health checks, refusals and Serve's own questions."""

    async def ask() -> None:
        server = replica()
        Scripted.gate.clear()
        asked = asyncio.create_task(server.score(request("a")))
        await until_busy(server)
        assert (await server.report()).clients.keys() == {"a"}
        assert await server.hold("b", None)
        assert not asked.done()
        Scripted.gate.set()
        await asked

    asyncio.run(asyncio.wait_for(ask(), 30))


class Poisoned(Ref):
    """A video at which `Scripted` breaks."""

    def future(self) -> concurrent.futures.Future[np.ndarray]:
        future: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        future.set_result(np.full((2, 3, 4, 4), POISON, np.uint8))
        return future


def poisoned(client: str) -> ScoreRequest:
    return ScoreRequest("bad", (Poisoned(),), ("p",), client)  # type: ignore[arg-type]


def test_a_scorer_that_fails_at_one_request_only_stays() -> None:
    """A run would take its bad video to the next replica, until all had been replaced."""

    async def ask() -> None:
        server = replica()
        asked = [server.score(r) for r in (request("a"), poisoned("b"), request("c"))]
        good, bad, also_good = await asyncio.gather(*asked, return_exceptions=True)
        assert good == also_good == {"level": [1.0]}
        assert isinstance(bad, DataFailure), "its group is dropped"
        assert str(bad).startswith("Scripted failed at request bad with RuntimeError('CUDA error'), and")
        await server.check_health()
        assert await server.score(request("a")) == {"level": [1.0]}

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("afterwards", "message"),
    [
        (RuntimeError("CUDA is gone"), r"RuntimeError\('CUDA is gone'\)"),
        (math.nan, "gave level nan"),
        (1.05, "level of view 0 was 1 and is 1.05"),
    ],
)
def test_a_scorer_that_one_request_broke_is_replaced(afterwards: float | Exception, message: str) -> None:
    """An exception of CUDA failed the requests of all runs in the batch, and the broken replica stayed."""

    async def ask() -> None:
        server = replica()
        Scripted.answer = afterwards
        asked = await asyncio.gather(server.score(poisoned("b")), return_exceptions=True)
        assert isinstance(asked[0], InfraFailure), "to be tried elsewhere"
        assert str(asked[0]).startswith("Scripted failed at request bad with RuntimeError('CUDA error'); at")
        with pytest.raises(InfraFailure, match=message):
            await server.check_health()
        with pytest.raises(ServerBusy, match="about to be replaced"):
            await server.score(request("a"))

    asyncio.run(ask())


def test_a_batch_that_does_not_fit_is_scored_in_parts_and_the_replica_stays() -> None:
    """With the exception, the memory of the forward that failed would be held while the parts are scored."""

    async def ask() -> None:
        server = replica()
        Scripted.fits = 2
        answers = await asyncio.gather(*(server.score(request(client, 2)) for client in "ab"))
        assert answers == [{"level": [1.0, 1.0]}] * 2
        await server.check_health()

    asyncio.run(ask())
    assert [shape[0] for shape in Scripted.batches[-3:]] == [4, 2, 2]


def test_a_replica_whose_model_is_elsewhere_and_cannot_be_reached_stays() -> None:
    """A new one would not reach it either."""

    async def ask() -> None:
        server = replica()
        Scripted.answer = InfraFailure("http://judge does not answer")
        answers = await asyncio.gather(*(server.score(request(c)) for c in "ab"), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["http://judge does not answer"] * 2
        Scripted.answer = 1.0
        await server.check_health()
        assert await server.score(request("a")) == {"level": [1.0]}

    asyncio.run(ask())


def test_a_run_waits_for_the_replacement_of_a_broken_replica() -> None:
    """Its attempts would all be made within seconds, at the replica that Serve has not replaced yet."""
    broken, fresh = replica(), replica()
    handle = Server(broken)
    reward = REWARD.model_copy(update={"max_attempts": 2})

    async def replaced() -> None:
        while broken._fault is None or handle.asked < 10:
            await asyncio.sleep(0.001)
        handle._server, Scripted.answer = fresh, 1.0

    async def run() -> float:
        pool = ServeRewardPool([reward], connect=lambda *_: [handle])
        await pool.start()
        Scripted.answer = RuntimeError("CUDA error: an illegal memory access")
        (scores,), _ = await asyncio.gather(pool.score(rollouts(1)), replaced())
        await pool.stop()
        return scores.values[reward.key]

    assert asyncio.run(asyncio.wait_for(run(), 30)) == 1.0


def test_a_request_larger_than_a_batch_is_refused_with_its_way_out() -> None:
    """It would be one forward of any size; who asks through the pool never sends one."""
    with pytest.raises(DataFailure, match=r"brings 5 videos; .* at most 4 together"):
        asyncio.run(replica().score(request("a", 5)))


def test_a_request_without_videos_is_refused() -> None:
    """It would wait for ever: a batch is waited for until it has a video."""

    async def ask() -> None:
        with pytest.raises(DataFailure, match="request r brings no videos"):
            await replica().score(request("a", 0))

    asyncio.run(asyncio.wait_for(ask(), 30))


class Late(Ref):
    """A video that is not here yet; whoever stops waiting for it is noted."""

    def __init__(self) -> None:
        self.there: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        self.is_asked = False

    def future(self) -> concurrent.futures.Future[np.ndarray]:
        self.is_asked = True
        return self.there


def request_of(client: str, *videos: Ref) -> ScoreRequest:
    return ScoreRequest("r", videos, ("p",) * len(videos), client)  # type: ignore[arg-type]


def test_frames_that_are_lost_hold_up_only_their_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch waited up to a minute for the frames of a run whose node was gone, one after the other."""
    monkeypatch.setattr(app, "LATE_AFTER_S", 0.2)
    monkeypatch.setattr(batch_scoring, "FETCH_TIMEOUT_S", 2.0)

    async def ask() -> None:
        server = replica()
        lost, later = [Late() for _ in range(4)], [Late() for _ in range(4)]
        began = time.monotonic()
        failed = [asyncio.create_task(server.score(request_of("lost", each))) for each in lost]
        while not all(each.is_asked for each in lost):
            await asyncio.sleep(0.001)
        failed += [asyncio.create_task(server.score(request_of("lost", each))) for each in later]
        for _ in range(6):
            assert await server.score(request("other")) == {"level": [1.0]}
        assert time.monotonic() - began < 1.5, "one short wait, and not one for each batch"
        assert not any(each.is_asked for each in later), "no more than a batch of each client is on its way"
        assert (await server.report()).num_waiting == 8
        lost[0].there.set_result(np.zeros((2, 3, 4, 4), np.uint8))
        assert await failed[0] == {"level": [1.0]}, "late, not lost"
        assert time.monotonic() - began < 1.8
        for each in later:
            each.there.set_result(np.zeros((2, 3, 4, 4), np.uint8))
        results = await asyncio.gather(*failed[1:], return_exceptions=True)
        assert [type(each) for each in results] == [PayloadsLost] * 3 + [dict] * 4
        assert (await server.report()).num_waiting == 0

    asyncio.run(asyncio.wait_for(ask(), 30))


class Travelling(Ref):
    """A video that takes `seconds` from when it is asked for; counts how many are on their way or here."""

    seconds = 10 * SECONDS
    num_asked = 0

    def future(self) -> concurrent.futures.Future[np.ndarray]:
        type(self).num_asked += 1
        future: concurrent.futures.Future[np.ndarray] = concurrent.futures.Future()
        threading.Timer(self.seconds, future.set_result, [np.zeros((2, 3, 4, 4), np.uint8)]).start()
        return future


def test_frames_of_the_next_batch_travel_while_one_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that waits for the network between any two batches; a replica that fetches its whole queue."""
    monkeypatch.setattr(Travelling, "num_asked", 0)

    async def ask() -> None:
        server = replica()
        Scripted.gate.clear()
        first = asyncio.create_task(server.score(request("a")))
        await until_busy(server)
        later = [asyncio.create_task(server.score(request_of("a", Travelling()))) for _ in range(8)]
        newcomer = asyncio.create_task(server.score(request_of("b", Travelling())))
        await asyncio.sleep(0.02)
        assert Travelling.num_asked == 4, "of one batch, though the next one would be another now"
        newcomer.cancel()
        await asyncio.sleep(Travelling.seconds)
        Scripted.gate.set()
        began = time.monotonic()
        await first
        await asyncio.wait(later, return_when=asyncio.FIRST_COMPLETED)
        took_s = time.monotonic() - began
        assert took_s < 2 * SECONDS + 0.8 * Travelling.seconds, "two forwards, and no journey between them"
        assert await asyncio.gather(*later) == [{"level": [1.0]}] * 8

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_late_frames_that_nobody_waits_for_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's next requests would wait for them."""
    monkeypatch.setattr(app, "LATE_AFTER_S", 0.05)

    async def ask() -> None:
        server = replica()
        lost = Late()
        given_up = asyncio.create_task(server.score(request_of("a", lost)))
        while not server._queue._late:
            await asyncio.sleep(0.01)
        given_up.cancel()
        assert await server.score(request("a")) == {"level": [1.0]}
        assert lost.there.cancelled()
        assert not server._queue._late and not server._queue.num_waiting

    asyncio.run(asyncio.wait_for(ask(), 30))
    gc.collect()
    assert not caplog.records


def test_a_flooding_client_does_not_starve_another() -> None:
    """In the order of arrival, the small client would wait for 15 batches."""

    async def ask() -> int:
        server = replica()
        Scripted.gate.clear()
        flood = [asyncio.create_task(server.score(request("flood"))) for _ in range(60)]
        await until_busy(server)
        small = asyncio.create_task(server.score(request("small")))
        await asyncio.sleep(0)
        seen = len(Scripted.batches)
        Scripted.gate.set()
        await small
        num_batches = len(Scripted.batches) - seen
        await asyncio.gather(*flood)
        assert max((await server.report()).batch_sizes) == 4
        return num_batches

    assert asyncio.run(ask()) <= 2, "its own, and perhaps the one after it"


def test_each_client_has_an_equal_part_and_a_newcomer_finds_room() -> None:
    """A client that fills the queue would keep all others out, however fair the turns are."""

    async def fill() -> dict[str, int]:
        queue = FairQueue(12)
        kept: Counter[str] = Counter()
        for _ in range(30):
            for client in ("a", "b"):
                try:
                    queue.put(request(client))
                    kept[client] += 1
                except ServerBusy:
                    continue
        with pytest.raises(ServerBusy, match=r"4 requests of 'a' wait .* its part of 12 is 4"):
            queue.put(request("a"))
        queue.put(request("new"))
        return kept

    assert asyncio.run(fill()) == {"a": 4, "b": 4}


def test_a_request_that_is_refused_moves_no_pixels() -> None:
    """97 MB a video would travel to a replica that does not score it."""

    class Untouched(Ref):
        def future(self) -> Any:
            raise AssertionError("the frames were fetched")

    async def ask() -> None:
        server = replica()
        server._queue = FairQueue(2)
        waiting = asyncio.create_task(server.score(request("a")))
        await asyncio.sleep(0.01)
        with pytest.raises(ServerBusy):
            await server.score(ScoreRequest("r", (Untouched(),), ("p",), "a"))  # type: ignore[arg-type]
        await waiting

    asyncio.run(ask())


def test_what_nobody_waits_for_any_more_is_not_scored() -> None:
    """A run that has timed out or ended would still hold the GPU."""

    async def ask() -> None:
        server = replica()
        Scripted.gate.clear()
        first = asyncio.create_task(server.score(request("a")))
        await until_busy(server)
        given_up = [asyncio.create_task(server.score(request("b", 2))) for _ in range(3)]
        await asyncio.sleep(0.005)
        for task in given_up:
            task.cancel()
        Scripted.gate.set()
        await first
        await server.score(request("a"))

    asyncio.run(ask())
    assert [shape[0] for shape in Scripted.batches[4:]] == [1, 1]


def test_what_was_given_up_leaves_the_queue_at_once() -> None:
    """Behind a long batch, requests that time out and are sent again would pile up without a bound."""

    async def ask() -> None:
        queue = FairQueue(12)
        for client, size in (("a", 1), ("b", 2), ("a", 3)):
            queue.put(request(client, size)).cancel()
        queue.put(request("b"))
        await asyncio.sleep(0)
        assert queue.num_waiting == 1
        (left,) = await queue.batch(4, 0)
        assert len(left.request.videos) == 1

    asyncio.run(ask())


asked_for = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=20)


@given(asked_for, st.integers(1, 6))
@settings(deadline=None)
def test_batches_take_turns_between_clients_and_each_request_once(
    asked: list[tuple[str, int]], max_videos: int
) -> None:
    """A lost request waits for ever, one taken twice costs a forward, and an old one must not be overtaken
    by later ones of its own client."""

    async def drain() -> list[list[ScoreRequest]]:
        queue, batches = FairQueue(1000), []
        for number, (client, size) in enumerate(asked):
            queue.put(replace(request(client, size), request_id=str(number)))
        while queue.num_waiting:
            taken = await queue.batch(max_videos, 0)
            for waiting in taken:
                waiting.tell({})
            batches.append([waiting.request for waiting in taken])
        return batches

    batches = asyncio.run(drain())
    served = [each for batch in batches for each in batch]
    assert sorted(int(each.request_id) for each in served) == list(range(len(asked)))
    for client in "abc":
        own = [int(each.request_id) for each in served if each.client == client]
        assert own == sorted(own)
    for batch in batches:
        assert len(batch) == 1 or sum(len(each.videos) for each in batch) <= max_videos
    if {size for _, size in asked} == {1}:
        left = Counter(client for client, _ in asked)
        turns: Counter[str] = Counter()
        for each in served:
            turns[each.client] += 1
            waiting = [turns[c] for c in left if turns[c] < left[c] or c == each.client]
            assert max(waiting) - min(waiting) <= 1, "nobody gets two turns before all had one"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_ends_after_the_longest_timeout_that_was_asked_for() -> None:
    """A server that goes while a run holds it, or never."""
    clock = Clock()
    lease = Lease(10, clock)
    clock.now += 9
    assert lease.left_s == 1
    lease.renew()
    assert lease.left_s == 10
    lease.lengthen(4)
    assert lease.left_s == 10, "a run that wants less does not decide"
    lease.lengthen(60)
    clock.now += 61
    assert lease.left_s == -1
    lease.lengthen(None)
    clock.now += 1e9
    assert lease.left_s == math.inf


def test_a_server_on_its_way_out_says_so_to_whoever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that starts at this moment would lose its server before its first score."""
    deleted: list[str] = []
    monkeypatch.setattr(app.serve, "delete", lambda name, _blocking: deleted.append(name))
    monkeypatch.setattr(app.serve, "get_replica_context", lambda: type("C", (), {"app_name": "reward-x"}))

    async def run_out() -> tuple[bool, bool]:
        server = RewardServer(ServerSpec.of(REWARD, idle_timeout_s=0.05))
        before = await server.hold("a", 0.05)
        await server.check_health()
        assert deleted == []
        await asyncio.sleep(0.06)
        await server.check_health()
        await server.check_health()
        return before, await server.hold("a", None)

    assert asyncio.run(run_out()) == (True, False)
    assert deleted == ["reward-x"]


def test_what_a_server_did_is_counted_over_its_replicas() -> None:
    """Numbers that operators scale by; the figures below are counted by hand."""
    clock = Clock()
    first, second = Usage(clock), Usage(clock)
    for seconds, videos in ((1.0, 4), (3.0, 2)):
        first.answered(seconds, videos)
        first.batch_sizes[videos] += 1
    first.heard_of("a")
    clock.now += 30
    second.answered(2.0, 6)
    second.heard_of("a")
    second.heard_of("b")
    reports = [
        ReplicaReport(None, 1, 0, use.num_videos, dict(use.batch_sizes), use.answers, use.clients, 1.0)
        for use in (first, second)
    ]
    assert reports[0].num_videos == 6
    assert quantiles(reports, 0.5, 1.0) == [2.0, 3.0]
    assert videos_per_s(reports) == pytest.approx((4 + 2 + 6) / 60)
    assert clients_of(reports) == (("a", 0.0), ("b", 0.0))
    clock.now += 31
    assert videos_per_s([replace(reports[0], answers=first.answers)]) == 0.0, "over a minute ago"
    clock.now += 3600
    first.heard_of("c")
    assert first.clients.keys() == {"c"}


def test_a_server_s_status_says_who_uses_it_and_how_long_it_stays() -> None:
    """What `rewards status` prints."""
    status = ServerStatus(
        "reward-a-1-2", "RUNNING", "a", 1, 3, 1, 4, 7, 0.25, 1.5, 12.0, (("run-1", 4.2),), lease_left_s=600
    )
    assert list(status.lines()) == [
        "reward-a-1-2                                 RUNNING",
        "  replicas 1/3 (1 to 4)   waiting 7   p50 0.250 s   p99 1.500 s   12.00 videos/s",
        "  used by run-1 (4 s ago)   goes after 600 idle s",
    ]
    assert list(replace(status, clients=(), lease_left_s=math.inf).lines())[-1] == "  used by nobody   stays"


def test_a_window_is_halved_by_refusals_and_grows_with_answers() -> None:
    """A client that keeps asking as much as before is refused as often as before."""
    clock = Clock()
    places = Window(8, clock)
    for _ in range(5):
        places.refused()
    assert places.size == 4, "refusals that come together count once"
    clock.now += window.SHRINKS_EVERY_S
    places.refused()
    assert places.size == 2
    for _ in range(2):
        places.answered()
    assert places.size == 2, "2 + 1/2 + 1/2.5"
    places.answered()
    assert places.size == 3
    for _ in range(100):
        places.answered()
        clock.now += 10
    assert places.size == 8
    for _ in range(9):
        clock.now += 10
        places.refused()
    assert places.size == 1


class Server:
    """A Serve handle in front of a real replica; `trouble` is raised first, one for each request."""

    def __init__(self, server: RewardServer, trouble: Sequence[Exception] = ()) -> None:
        self._server, self._trouble = server, list(trouble)
        self.score = self
        self.leaving = 0
        self.most = self.now = self.asked = 0

    def remote(self, request: ScoreRequest) -> asyncio.Task[Any]:
        return asyncio.create_task(self._answer(request))

    async def _answer(self, request: ScoreRequest) -> Any:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self._trouble:
                raise self._trouble.pop(0)
            return await self._server.score(request)
        finally:
            self.now -= 1

    def broadcast(self, method: str, *arguments: object) -> Server:
        assert method == "hold"
        return self

    async def results_async(self, **_: object) -> list[bool]:
        self.leaving -= 1
        return [self.leaving < 0]

    async def shutdown_async(self) -> None: ...


def rollouts(count: int) -> list[Rollout]:
    return [
        Rollout("g", i, "p", i, PolicyVersion(0), "a", None, (Ref(), Ref()))  # type: ignore[arg-type]
        for i in range(count)
    ]


def score_with(handles: Sequence[Server], reward: RewardConfig, count: int, calls: int = 1) -> list[Any]:
    """The answers of `calls` calls at once; `handles` are connected to in turn."""
    waiting = list(handles)
    pool = ServeRewardPool([reward], connect=lambda *_: [waiting.pop(0)])

    async def run() -> list[Any]:
        await pool.start()
        answers = await asyncio.gather(*(pool.score(rollouts(count)) for _ in range(calls)))
        await pool.stop()
        return [scores.values[reward.key] for answer in answers for scores in answer]

    return asyncio.run(run())


def busy(kind: str) -> Exception:
    error = ServerBusy("your part is full")
    if kind == "Serve's queue":
        return BackPressureError(num_queued_requests=9, max_queued_requests=9)
    return error if kind == "plain" else RayTaskError("score", "Traceback ...", error).as_instanceof_cause()


@pytest.mark.parametrize("kind", ["plain", "raised in the replica", "Serve's queue"])
def test_a_refused_request_is_sent_until_it_is_taken(kind: str) -> None:
    """A busy hour of a shared server would end the run after four attempts."""
    handle = Server(replica(), [busy(kind) for _ in range(9)])
    assert score_with([handle], REWARD.model_copy(update={"max_attempts": 1}), 1) == [1.0]
    assert handle.asked == 10


def test_a_full_server_slows_its_client_down_and_no_score_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are refused and sent again at once would keep the replica busy with refusing."""
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", SECONDS)
    monkeypatch.setattr(window, "SHRINKS_EVERY_S", SECONDS)
    server = replica()
    server._queue = FairQueue(6)  # three for a client
    handle = Server(server)
    reward = REWARD.model_copy(update={"max_in_flight": 16, "max_attempts": 1})
    assert score_with([handle], reward, 1, calls=80) == [1.0] * 80
    assert handle.most <= 16
    assert handle.asked < 80 + 80, "fewer refusals than answers"


def test_a_large_group_is_asked_in_requests_that_fit_a_batch() -> None:
    """One request of 24 videos would be a forward of 24, however small max_batch_size is."""
    handle = Server(replica())
    assert score_with([handle], REWARD, 10) == [1.0] * 10
    assert handle.asked == 3
    assert max(shape[0] for shape in Scripted.batches) == 4


def test_a_server_that_is_gone_is_started_again_by_a_run_that_needs_it() -> None:
    """Somebody's `rewards down` would end the run."""
    gone = Server(replica(), [DeploymentUnavailableError(None)] * 3)  # type: ignore[arg-type]
    handles = [gone, Server(replica())]
    assert score_with(handles, REWARD, 1) == [1.0]
    assert (gone.asked, handles[1].asked) == (1, 1)


def test_a_run_that_finds_a_server_leaving_waits_for_a_new_one() -> None:
    """It would hold a handle to what is gone a moment later."""
    leaving, fresh = Server(replica()), Server(replica())
    leaving.leaving = 1
    assert score_with([leaving, fresh], REWARD, 1) == [1.0]
    assert (leaving.asked, fresh.asked) == (0, 1)
    for_ever = Server(replica())
    for_ever.leaving = 10**6
    with pytest.raises(InfraFailure, match="on their way out"):
        score_with([for_ever] * 100, REWARD, 1)


def test_a_scorer_s_environment_and_constructor_retries_go_to_serve() -> None:
    """Serve's default of twenty tries hides a broken checkpoint for minutes, and its queue has no end."""
    reward = REWARD.model_copy(update={"python": "/opt/x/bin/python", "packages": "a==1 b>=2,<3"})
    spec = ServerSpec.of(reward)
    assert spec.runtime_env == {"py_executable": "/opt/x/bin/python", "pip": ["a==1", "b>=2,<3"]}
    built: Any = application(spec, {"working_dir": "gcs://job.zip"})._bound_deployment
    assert built.ray_actor_options["runtime_env"] == {"working_dir": "gcs://job.zip"}
    assert built._deployment_config.max_constructor_retry_count == 3
    assert built._deployment_config.autoscaling_config.min_replicas == 1
    assert 0 < built._deployment_config.max_queued_requests < 10_000
    assert not ServerSpec.of(REWARD).runtime_env


def test_servers_scale_slowly_and_never_to_nothing() -> None:
    """Serve's defaults keep an idle GPU for ten minutes; a cold start needs code that may be gone."""
    built: Any = application(ServerSpec.of(REWARD), {})._bound_deployment
    scaling = built._deployment_config.autoscaling_config
    assert (scaling.look_back_period_s, scaling.upscale_delay_s, scaling.downscale_delay_s) == (10, 5, 120)
    with pytest.raises(ValidationError, match="min_replicas"):
        RewardConfig(key="tiny_clip", min_replicas=0)


def test_references_pass_through_serve_whatever_its_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_SERVE_USE_GRPC_BY_DEFAULT=1 would have each run fetch all frames and send them by value."""

    class Handle:
        def options(self, **options: object) -> dict[str, object]:
            return options

    monkeypatch.setattr(deploy.serve, "get_app_handle", lambda name: Handle())
    assert deploy.handle_of("reward-x") == {"_by_reference": True}


def test_a_known_video_has_motion_and_every_view_that_is_asked_for() -> None:
    """A still or empty video would not tell a scorer that has lost its mind from one that has not."""
    views = known_video.views_of(Scripted.card, known_video.SMALL)
    colour, gray = views.values()
    assert colour.shape == gray.shape == (2, 3, 64, 64)
    assert (colour[0] != colour[1]).mean() > 0.9
    assert (gray[:, 0] == gray[:, 1]).all() and not (colour[:, 0] == colour[:, 1]).all()
    assert known_video.drawn_video(9, 4, 4)[8, 2, 3, 1] == (3 + 15 + 56 + 80) % 256
