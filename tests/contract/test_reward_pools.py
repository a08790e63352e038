"""What reward pools and servers promise, with a fake Serve handle or none."""

from __future__ import annotations

import asyncio
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import exceptions as rx
from ray.exceptions import RayTaskError

import launch
from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure, PayloadsLost
from astrolabe_ray.types import FrameSpec, PolicyVersion, Rollout
from reward_servers import identity
from reward_servers import pool as pool_module
from reward_servers.app import ServerSpec
from reward_servers.batch_scoring import ScoreRequest, ScorerFault, check_videos, score_together
from reward_servers.deploy_lock import DeployLock
from reward_servers.local_pool import LocalRewardPool
from reward_servers.pool import ServeRewardPool
from reward_servers.readiness import Patience

ROOT = Path(__file__).parents[2]
PROMPT = "a small red circle moves left on a black background"
REWARDS = (RewardConfig(key="image_quality", max_attempts=3), RewardConfig(key="motion_quality"))


def video(level: int) -> np.ndarray:
    """A square of this brightness on black."""
    frames = np.zeros((9, 3, 32, 32), np.uint8)
    frames[:, :, 8:20, 8:20] = level
    return frames


def rollouts(views: Sequence[FrameSpec], *videos: np.ndarray) -> list[Rollout]:
    return [
        Rollout("g", i, PROMPT, i, PolicyVersion(0), "a", None, tuple(derive_view(each, v) for v in views))
        for i, each in enumerate(videos)
    ]


class Handle:
    """Answers like a Serve handle; `answer` gets the request and the number of the call."""

    def __init__(self, answer: Callable[[ScoreRequest, int], Any]) -> None:
        self.requests: list[ScoreRequest] = []
        self.answer = answer
        self.score = self
        self.closed = 0
        self.broadcasts: list[tuple[object, ...]] = []
        self.refuses_to_stay = 0  # so often

    def remote(self, request: ScoreRequest) -> asyncio.Future[Any]:
        self.requests.append(request)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        result = self.answer(request, len(self.requests))
        if isinstance(result, BaseException):
            future.set_exception(result)
        elif result is not None:
            future.set_result(result)
        return future  # None: never answers

    def broadcast(self, method: str, *arguments: object) -> Handle:
        self.broadcasts.append((method, *arguments))
        return self

    async def results_async(self, **options: object) -> list[bool]:
        return [self.broadcasts.count(self.broadcasts[-1]) > self.refuses_to_stay]

    async def shutdown_async(self) -> None:
        self.closed += 1


def image_says(scores: list[float]) -> Handle:
    return Handle(lambda *_: {"image_quality": scores})


def motion_says(scores: list[float]) -> Handle:
    return Handle(lambda *_: {"motion_quality": scores})


def score_with(*handles: Handle, rewards: Sequence[RewardConfig] = REWARDS) -> list[Any]:
    pool = ServeRewardPool(rewards, connect=lambda specs, _: handles[: len(specs)])

    async def run() -> list[Any]:
        await pool.start()
        return await pool.score(rollouts(pool.views, video(255), video(100)))

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", 0.001)


def test_scores_keep_the_order_of_rollouts_and_go_by_key() -> None:
    """Swapped rewards train towards the wrong videos without any error."""
    image, motion = image_says([0.1, 0.2]), motion_says([1.0, 2.0])
    scores = score_with(image, motion)
    assert [score.values for score in scores] == [
        {"image_quality": 0.1, "motion_quality": 1.0},
        {"image_quality": 0.2, "motion_quality": 2.0},
    ]
    assert [v.shape[0] for v in image.requests[0].videos] == [4, 4], "its view has four frames"
    assert [v.shape[0] for v in motion.requests[0].videos] == [9, 9], "its view has all frames"


@pytest.mark.parametrize(
    "trouble", [rx.ActorDiedError(), rx.ObjectLostError("00", None, ""), InfraFailure("videos are lost")]
)
def test_a_request_that_infrastructure_broke_is_sent_again(trouble: Exception) -> None:
    """Scoring has no side effects, so one dead replica must not end a run."""
    image = Handle(lambda _, call: trouble if call < 3 else {"image_quality": [0.5, 0.5]})
    assert score_with(image, motion_says([0.0, 0.0]))[0].values["image_quality"] == 0.5
    assert len(image.requests) == 3


def test_after_the_last_attempt_the_cause_is_told() -> None:
    """An endless retry looks like a hang."""
    image = Handle(lambda *_: rx.ActorDiedError())
    with pytest.raises(InfraFailure, match="'image_quality' did not answer in 3 attempts"):
        score_with(image, motion_says([0.0, 0.0]))
    assert len(image.requests) == 3


def test_a_server_that_never_answers_counts_as_broken() -> None:
    """A wait without an end stalls the whole run."""
    slow = (RewardConfig(key="image_quality", max_attempts=2, request_timeout_s=0.05),)
    with pytest.raises(InfraFailure, match="in 2 attempts: TimeoutError"):
        score_with(Handle(lambda *_: None), rewards=slow)


def test_an_input_that_cannot_be_scored_is_not_sent_again() -> None:
    """The same bad video would fail on every replica."""
    image = Handle(lambda *_: DataFailure("the score is nan"))
    with pytest.raises(DataFailure, match="nan"):
        score_with(image, motion_says([0.0, 0.0]))
    assert len(image.requests) == 1


def test_videos_that_are_lost_are_not_looked_for_again() -> None:
    """The run would end after minutes of asking for what is gone, and nobody made the videos again."""
    error = PayloadsLost("the videos of request r are lost", ("train-3/0",))
    image = Handle(lambda *_: RayTaskError("score", "Traceback ...", error).as_instanceof_cause())
    with pytest.raises(PayloadsLost, match="are lost") as caught:
        score_with(image, Handle(lambda *_: [0.0, 0.0]))
    assert len(image.requests) == 1
    assert pickle.loads(pickle.dumps(caught.value)).rollout_ids == ("train-3/0",)


def test_a_run_that_leaves_its_servers_to_others_closes_its_handles() -> None:
    """Serve's router behind an open handle goes on reporting to a cluster that the run has left."""
    handles = [image_says([0.0]), motion_says([0.0])]
    pool = ServeRewardPool(REWARDS, connect=lambda *_: handles)

    async def run() -> None:
        await pool.start()
        await pool.stop()

    asyncio.run(run())
    assert [handle.closed for handle in handles] == [1, 1]


def test_two_runs_of_one_name_are_two_clients() -> None:
    """They would share one client's part of a server, and look like one run in its status."""
    handles = [image_says([0.0]) for _ in range(2)]

    async def run() -> None:
        for handle in handles:
            pool = ServeRewardPool(REWARDS[:1], client="demo", connect=lambda *_, h=handle: [h])
            await pool.start()
            await pool.score(rollouts(pool.views, video(1)))
            await pool.stop()

    asyncio.run(run())
    held_as = [str(handle.broadcasts[0][1]) for handle in handles]
    assert held_as == [handle.requests[0].client for handle in handles]
    assert len(set(held_as)) == 2 and all(name.startswith("demo-") for name in held_as)


@pytest.mark.parametrize("idle_timeout_s", [42.0, None])
def test_who_scores_finished_videos_holds_servers_as_long_as_the_config_says(
    idle_timeout_s: float | None,
) -> None:
    """A lease only grows: the default's hour would keep GPUs that the config gives back after a minute."""
    image, patiences = image_says([0.5]), []
    cluster = ClusterConfig(reward_idle_timeout_s=idle_timeout_s, reward_load_timeout_s=7)
    pool = launch.make_video_rewards(REWARDS[:1], cluster)

    def connect(_: Sequence[ServerSpec], patience: Patience) -> list[Handle]:
        patiences.append(patience.load_timeout_s)
        return [image]

    pool._connect = connect  # type: ignore[attr-defined]

    async def run() -> None:
        await pool.start()
        await pool.stop()

    asyncio.run(run())
    assert image.broadcasts[0][2] == idle_timeout_s and patiences == [7]


def test_a_round_of_holding_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers that nobody holds any more end during a long phase without scores, and nobody was told why."""
    monkeypatch.setattr(pool_module, "HOLD_EVERY_S", 0.01)
    image = image_says([0.0])
    rounds = 0

    def results_async(**_: object) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds in (2, 3):
            raise RuntimeError("the router is closed")
        return asyncio.sleep(0, [True])

    image.results_async = results_async  # type: ignore[method-assign, assignment]
    pool = ServeRewardPool(REWARDS[:1], connect=lambda *_: [image])

    async def run() -> None:
        await pool.start()
        while rounds < 5:
            await asyncio.sleep(0.01)
        await pool.stop()

    asyncio.run(asyncio.wait_for(run(), 10))
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "reward servers were not held this time, tried again: RuntimeError('the router is closed')"
    ]


def test_an_unknown_reward_is_refused_before_anything_starts() -> None:
    """It would cost a deployment to find out."""
    with pytest.raises(ConfigError, match="image_quality"):
        ServeRewardPool((RewardConfig(key="image_qualty"),))


def test_keys_of_one_model_are_one_server_that_gets_each_view_once() -> None:
    """Two keys of a 2B model would otherwise be two copies of it and two forwards."""
    keys = ("videoalign_ta_score", "image_quality", "videoalign_vq_score", "videoalign_mq_score")
    rewards = tuple(RewardConfig(key=key) for key in keys)
    specs: list[ServerSpec] = []
    numbers = {"vq": [1.0, 2.0], "mq": [3.0, 4.0], "ta": [5.0, 6.0], "overall": [0.0, 0.0]}
    gray = {**numbers, "mq": [7.0, 8.0]}
    model = Handle(lambda request, _: gray if is_gray(request.videos[0]) else numbers)

    def connect(wanted: Sequence[ServerSpec], _: Patience) -> list[Handle]:
        specs.extend(wanted)
        return [model, image_says([0.5, 0.5])]

    pool = ServeRewardPool(rewards, connect=connect)

    async def run() -> list[Any]:
        await pool.start()
        red = np.zeros((12, 3, 32, 32), np.uint8)
        red[:, 0] = 200
        return await pool.score(rollouts(pool.views, red, red))

    scores = asyncio.run(run())
    assert [spec.scorer for spec in specs] == ["videoreward", "image_quality"]
    assert len(model.requests) == 2 and [v.shape[0] for v in model.requests[0].videos] == [10, 10]
    assert list(scores[0].values.items()) == list(zip(keys, (5.0, 0.5, 1.0, 7.0), strict=True))
    assert list(scores[1].values.values()) == [6.0, 0.5, 2.0, 8.0]


def is_gray(video: np.ndarray) -> bool:
    return bool((video[:, 0] == video[:, 1]).all())


def test_the_local_pool_gives_each_scorer_its_view() -> None:
    """A scorer that sees other frames than its view measures something else."""
    pool = LocalRewardPool(REWARDS)
    bright, empty = asyncio.run(pool.score(rollouts(pool.views, video(255), video(0))))
    assert bright.values == {"image_quality": pytest.approx(1.0), "motion_quality": 0.0}
    assert empty.values == {"image_quality": 0.0, "motion_quality": 0.0}


class Brightness:
    """Mean level; refuses white videos and gives NaN for black ones."""

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        means = videos.reshape(len(videos), -1).mean(axis=1)
        if (means == 255).any():
            raise DataFailure("too bright")
        return {"level": np.where(means == 0, math.nan, means).astype(np.float32)}


def plain(level: int, frames: int = 2, count: int = 1) -> np.ndarray:
    return np.full((count, frames, 3, 4, 4), level, np.uint8)


def scores_of(
    fetched: Sequence[Any], scorer: Any = None, complaint: Callable[[], str] = lambda: ""
) -> list[Any]:
    return score_together(scorer or Brightness(), fetched, requests_for(fetched), complaint)


def requests_for(fetched: Sequence[Any]) -> list[ScoreRequest]:
    return [
        ScoreRequest(str(i), (), (PROMPT,) * (len(v) if isinstance(v, np.ndarray) else 1))
        for i, v in enumerate(fetched)
    ]


def test_a_bad_request_fails_alone_in_its_batch() -> None:
    """Requests of other runs share the batch."""
    lost = InfraFailure("lost")
    fetched = [plain(10, count=2), plain(255), lost, plain(0), plain(30, frames=5)]
    results = scores_of(fetched)
    assert results[0] == {"level": [10.0, 10.0]}
    assert isinstance(results[1], DataFailure) and "too bright" in str(results[1])
    assert results[2] is lost
    assert isinstance(results[3], DataFailure) and "gave level nan" in str(results[3])
    assert results[4] == {"level": [30.0]}


class Sizes(Brightness):
    """Remembers how many videos each forward had; breaks at a video of level 7."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        self.sizes.append(len(videos))
        if (videos == 7).all(axis=(1, 2, 3, 4)).any():
            raise ValueError("no seventh level")
        return super().score(videos, prompts)


def test_one_bad_request_of_many_costs_few_forwards() -> None:
    """Scored one by one, a batch of 16 with one bad prompt cost 17 forwards, for all runs that share it."""
    for bad in (255, 7):
        scorer = Sizes()
        results = scores_of([plain(bad if i == 5 else 10 + i) for i in range(16)], scorer)
        assert scorer.sizes == [16, 8, 4, 4, 2, 1, 1, 2, 8]
        assert isinstance(results[5], DataFailure)
        assert [results[i] for i in range(16) if i != 5] == [
            {"level": [10.0 + i]} for i in range(16) if i != 5
        ]


def test_a_failure_that_follows_the_input_is_that_of_the_input() -> None:
    """Sent again as a fault of the server, one bad upload took down every replica in turn."""
    good, bad = scores_of([plain(1), plain(7)], Sizes())
    assert good == {"level": [1.0]}
    assert isinstance(bad, DataFailure)
    assert str(bad).startswith("Sizes failed at request 1 with ValueError('no seventh level'), and")
    broken = scores_of([plain(7)], Sizes(), lambda: "level was 3 and is 4")[0]
    assert isinstance(broken, ScorerFault), "to be tried elsewhere"
    assert str(broken).endswith("ValueError('no seventh level'); at the known video: level was 3 and is 4")


@given(st.lists(st.tuples(st.integers(1, 254), st.sampled_from([2, 5]), st.integers(1, 3)), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_do_not_depend_on_how_requests_are_batched(asked: list[tuple[int, int, int]]) -> None:
    """Which requests meet in a batch is chance; of other shapes, counts or order they must not matter."""
    fetched = [plain(level, frames, count) for level, frames, count in asked]
    together = scores_of(fetched)
    alone = [scores_of([each])[0] for each in fetched]
    assert together == alone == [{"level": [float(level)] * count} for level, _, count in asked]


@pytest.mark.parametrize(
    "videos",
    [
        [],
        [plain(1)[0]],
        [plain(1)[0], plain(1)[0].astype(np.float32)],
        [plain(1)[0], plain(1, frames=3)[0]],
        [plain(1)[0, 0], plain(1)[0, 0]],
        [plain(1)[0, :0], plain(1)[0, :0]],
        [plain(1)[0, ..., :0], plain(1)[0, ..., :0]],
    ],
)
def test_only_uint8_videos_of_one_shape_and_one_per_prompt_are_scored(videos: list[np.ndarray]) -> None:
    """Floats in 0..1 read as levels would give a plausible wrong score."""
    with pytest.raises(DataFailure, match="needed is one uint8"):
        check_videos(videos, ScoreRequest("r", (), (PROMPT, PROMPT)))
    check_videos([plain(1)[0], plain(2)[0]], ScoreRequest("r", (), (PROMPT, PROMPT)))


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused_by_servers_and_in_process(prompt: str) -> None:
    """Models give a plausible number for alignment with nothing."""
    with pytest.raises(DataFailure, match="the prompt of video 1 is empty"):
        check_videos([plain(1)[0], plain(2)[0]], ScoreRequest("r", (), (PROMPT, prompt)))
    pool = LocalRewardPool(REWARDS)
    one = replace(rollouts(pool.views, video(255))[0], prompt=prompt)
    with pytest.raises(DataFailure, match="the prompt of video 0 is empty"):
        asyncio.run(pool.score([one]))


def test_servers_are_the_same_only_if_all_that_defines_them_is() -> None:
    """Sharing by key alone would hand a run a server with other resources."""
    spec = ServerSpec.of(RewardConfig(key="tiny_clip"))
    assert spec.app_name == ServerSpec.of(RewardConfig(key="tiny_clip", weight=3, max_attempts=9)).app_name
    elsewhere = {
        ServerSpec.of(RewardConfig(key="video_hpsv3_local", folder=folder)).app_name for folder in "ab"
    }
    assert len(elsewhere) == 2, "other files, other server"
    assert ServerSpec.of(RewardConfig(key="tiny_clip", folder="b")).app_name == spec.app_name, "it has none"
    names = {
        spec.app_name,
        ServerSpec.of(RewardConfig(key="tiny_clip", num_cpus=2)).app_name,
        ServerSpec.of(RewardConfig(key="tiny_clip", python="/opt/clip/bin/python")).app_name,
        ServerSpec.of(RewardConfig(key="tiny_clip", packages="a==1")).app_name,
        ServerSpec.of(RewardConfig(key="image_quality")).app_name,
    }
    assert len(names) == 5
    more = ServerSpec.of(RewardConfig(key="tiny_clip", max_replicas=2), idle_timeout_s=60)
    assert more.app_name == spec.app_name, "how many replicas there are may change while it runs"


def test_servers_of_other_code_or_weights_are_other_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of the scorer the old one went on scoring, in silence, until somebody took it down."""
    reward = RewardConfig(key="tiny_clip")

    def name() -> tuple[str, str]:
        identity.made_of.cache_clear()
        spec = ServerSpec.of(reward)
        assert spec.app_name.startswith(spec.settings_name)
        return spec.settings_name, spec.app_name

    as_it_is = name()
    weights = tmp_path / "clip"
    shutil.copytree(identity.WEIGHTS["tiny_clip"][0], weights)
    monkeypatch.setitem(identity.WEIGHTS, "tiny_clip", (weights, identity.WEIGHTS["tiny_clip"][1]))
    assert name() == as_it_is, "a copy elsewhere is the same"
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    trained_on = name()
    sources = identity._source
    for module in ("reward_servers.tiny_clip_scorer", "reward_servers.app"):
        edited = tmp_path / sources(module).name
        edited.write_text(sources(module).read_text() + "# another line\n")
        monkeypatch.setattr(
            identity, "_source", lambda asked, m=module, e=edited: e if asked == m else sources(asked)
        )
        changed = name()
        assert changed[0] == trained_on[0] == as_it_is[0]
        assert len({changed[1], trained_on[1], as_it_is[1]}) == 3
    monkeypatch.undo()
    assert name() == as_it_is


def test_code_that_a_scorer_shares_with_the_rest_counts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading of a published file was repaired, and servers with the old reading went on scoring."""
    sources = identity._source

    def name(key: str) -> str:
        identity.made_of.cache_clear()
        return ServerSpec.of(RewardConfig(key=key)).app_name

    keys = ("video_hpsv3_local", "tiny_clip")
    before = [name(key) for key in keys]
    changes = {}
    for module in ("astrolabe_ray.models.weight_files", "astrolabe_ray.data.frames", "astrolabe_ray.types"):
        edited = tmp_path / module
        edited.write_text(sources(module).read_text() + "# another line\n")
        with monkeypatch.context() as patch:
            patch.setattr(
                identity, "_source", lambda asked, m=module, e=edited: e if asked == m else sources(asked)
            )
            changes[module.split(".")[-1]] = [name(key) != old for key, old in zip(keys, before, strict=True)]
    assert changes == {
        "weight_files": [True, False],  # only HPSv3 reads a published file
        "frames": [True, True],
        "types": [False, False],  # a message that gets a field is no other scorer
    }
    assert [name(key) for key in keys] == before


def test_what_a_server_is_made_of_is_found_without_importing_it() -> None:
    """It may need what only the server's environment has, and torch takes seconds."""
    code = (
        "import sys; from reward_servers.identity import own_modules; "
        "print(*own_modules('reward_servers.hpsv3_scorer')); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"reward_servers.qwen_reward", "astrolabe_ray.models.weight_files"} <= set(done.stdout.split())


def test_of_a_large_file_the_ends_and_the_size_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of gigabytes would be read before each run."""
    monkeypatch.setattr(identity, "WHOLE_BYTES", 100)
    monkeypatch.setattr(identity, "END_BYTES", 10)

    def digest(content: bytes) -> str:
        (tmp_path / "weights").write_bytes(content)
        return identity.file_digest(tmp_path / "weights")

    base = bytes(200)
    others = [b"\x01" + base[1:], base[:-1] + b"\x01", base + b"\x00"]
    assert len({digest(content) for content in (base, *others)}) == 4
    assert digest(base[:100] + b"\x01" + base[101:]) == digest(base)


def test_the_lock_s_process_loads_nothing() -> None:
    """It lives as long as the cluster: with torch in it, it held 390 MB for a name and a number."""
    code = (
        "import sys, reward_servers.deploy_lock; sys.exit(bool({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_one_process_at_a_time_deploys_and_a_dead_one_blocks_nobody_for_ever() -> None:
    """Two runs that start together would restart each other's servers."""
    lock = DeployLock()
    assert lock.acquire("a", 60)
    assert not lock.acquire("b", 60)
    lock.release("b")
    assert not lock.acquire("b", 60), "only the holder releases"
    lock.release("a")
    assert lock.acquire("b", -1.0)
    assert lock.acquire("a", 60), "a lease that has run out"
