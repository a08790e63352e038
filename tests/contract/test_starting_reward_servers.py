"""How long reward servers are waited for, and what is said when they do not come; Serve is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions as rx

from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.errors import AstrolabeError, ConfigError, InfraFailure
from reward_servers import deploy, readiness
from reward_servers.app import ServerSpec
from reward_servers.deploy_lock import DeployLock
from reward_servers.pool import ServeRewardPool
from reward_servers.readiness import Patience, wait_until_running

REWARD = RewardConfig(key="image_quality", num_cpus=0.5, min_replicas=2, max_replicas=2)
SPEC = ServerSpec.of(REWARD)
RESOURCES = "Deployment has 1 replicas that have taken more than 30s\nto be scheduled."


def app(status: str, *pids: int | None, says: str = "") -> dict[str, Any]:
    """An application as Serve's controller describes it, with replicas of these processes."""
    state = "RUNNING" if status == "RUNNING" else "STARTING"
    replicas = [{"state": state} if pid is None else {"state": state, "pid": pid} for pid in pids]
    return {
        "status": status,
        "message": "of the application",
        "deployments": {"RewardServer": {"message": says, "replicas": replicas}},
    }


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has Serve describe the server in these ways, one after the other; the last one stays."""

    def set_to(*states: dict[str, Any] | None) -> None:
        left = list(states)

        def details() -> dict[str, Any]:
            state = left.pop(0) if len(left) > 1 else left[0]
            return {} if state is None else {SPEC.app_name: state}

        monkeypatch.setattr(readiness, "serve_details", details)
        monkeypatch.setattr(deploy, "serve_details", details)

    monkeypatch.setattr(readiness, "POLL_EVERY_S", 0.01)
    return set_to


def refusal(patience: Patience, spec: ServerSpec = SPEC) -> AstrolabeError:
    began = time.monotonic()
    with pytest.raises(AstrolabeError) as caught:
        wait_until_running([spec], patience)
    assert time.monotonic() - began < 5
    return caught.value


def test_a_server_that_somebody_else_is_starting_is_waited_for(script: Callable[..., None]) -> None:
    """Its first request would wait in Serve's queue for as long as the model loads, and count as lost."""
    script(*[app("DEPLOYING", 1, None)] * 3, app("UNHEALTHY", 1, 2), app("RUNNING", 1, 2))
    began = time.monotonic()
    wait_until_running([SPEC], Patience(60, 60))
    assert time.monotonic() - began >= 0.04, "not at the first look"


def test_a_server_without_room_is_given_up_after_the_placement_timeout(script: Callable[..., None]) -> None:
    """Serve waits for ever."""
    script(app("DEPLOYING", 7, None, says=RESOURCES))
    error = refusal(Patience(0.05, 1000))
    assert isinstance(error, ConfigError), "as for every other process without room"
    assert str(error).startswith(
        f"no room for {SPEC.app_name} after 0.05 s: each replica needs 0.5 CPU and 0 GPU of one node, and "
        "there are to be 2. Serve says: Deployment has 1 replicas that have taken more than 30s to be "
        "scheduled. Lower"
    )
    assert "cluster.placement_timeout_s" in str(error)


@pytest.mark.parametrize(
    ("state", "taken_back"),
    [
        (app("DEPLOYING"), True),
        (app("DEPLOYING", 7, None), True),
        (app("DEPLOYING", 7, 8), False),
        (app("DEPLOY_FAILED"), False),
    ],
)
def test_what_waits_for_room_is_taken_back_and_what_loads_or_failed_is_not(
    state: dict[str, Any], taken_back: bool, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the room of others later. What loads is found by the next run, what failed by users."""
    deleted = list[str]()
    monkeypatch.setattr(deploy.serve, "delete", lambda name, _blocking: deleted.append(name))
    script(state)
    deploy._take_back([SPEC.app_name])
    assert deleted == [SPEC.app_name] * taken_back


@pytest.mark.parametrize("packages", ["", "some-package==1"])
def test_a_server_that_loads_too_long_is_given_up_later(packages: str, script: Callable[..., None]) -> None:
    """A wedged download holds the run as long as no room does; installing packages is not a lack of room."""
    spec = ServerSpec.of(REWARD.model_copy(update={"packages": packages}))
    script(app("DEPLOYING", None if packages else 7, says="slow __init__"))
    name, readiness_details = SPEC.app_name, readiness.serve_details
    apps = {spec.app_name: readiness_details()[name]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readiness, "serve_details", lambda: apps)
        error = refusal(Patience(0.05, 0.2), spec)
    assert isinstance(error, InfraFailure)
    assert "does not answer after 0.25 s; it is DEPLOYING, and Serve says: slow __init__." in str(error)
    assert "cluster.reward_load_timeout_s" in str(error)


def test_a_replica_that_is_started_again_has_room(script: Callable[..., None]) -> None:
    """Between two tries of a constructor there is no process for a moment, minutes after the start."""
    script(*[app("DEPLOYING", 7), app("DEPLOYING", None)] * 10, app("RUNNING", 7))
    wait_until_running([SPEC], Patience(0.05, 60))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "was taken down while it was starting"),
        (app("DELETING", 7), "was taken down while it was starting"),
        (
            app("DEPLOY_FAILED", says="Traceback ...\n  in __init__\nValueError: no weights"),
            f"{SPEC.app_name} does not start: ValueError: no weights",
        ),
        (app("DEPLOY_FAILED"), "does not start: of the application"),
    ],
)
def test_a_server_that_will_never_answer_is_not_waited_for(
    state: dict[str, Any] | None, message: str, script: Callable[..., None]
) -> None:
    """An hour of loading time would pass first."""
    script(app("DEPLOYING", 7), state)
    error = refusal(Patience(60, 60))
    assert isinstance(error, InfraFailure) and message in str(error)


def test_a_run_that_is_asked_to_stop_does_not_wait_for_its_servers(script: Callable[..., None]) -> None:
    """The thread that waits would keep the program from ending, however often Ctrl-C is pressed."""
    script(app("DEPLOYING", None))
    ended = threading.Event()

    def connect(specs: Sequence[ServerSpec], patience: Patience) -> Sequence[Any]:
        try:
            wait_until_running(specs, patience)
        finally:
            ended.set()
        return []

    async def run() -> None:
        pool = ServeRewardPool([REWARD], connect=connect, patience=Patience(1000, 1000))
        start = asyncio.create_task(pool.start())
        await asyncio.sleep(0.1)
        assert not ended.is_set()
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        await pool.stop()

    began = time.monotonic()
    asyncio.run(run())  # joins the thread
    assert ended.is_set() and time.monotonic() - began < 10


class Lock:
    """A lock's process whose answers are scripted."""

    def __init__(self) -> None:
        self.acquire = self.release = SimpleNamespace(remote=lambda *_: None)
        self.options = lambda **_: self
        self.remote = lambda *_: self

    def __call__(self, _: type) -> Lock:
        return self


@contextlib.contextmanager
def lock_that_says(*answers: object) -> Iterator[None]:
    left = list(answers)

    def get(_: object, timeout: float) -> object:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "ray", SimpleNamespace(remote=lambda **_: Lock(), get=get))
        patch.setattr(deploy.serve, "start", lambda **_: None)
        yield


@pytest.mark.parametrize("trouble", [rx.GetTimeoutError("30 s"), rx.ActorDiedError()])
def test_a_lock_that_does_not_answer_is_told_in_one_line(trouble: Exception) -> None:
    """A traceback of Ray says neither what was wanted nor what to do."""
    with lock_that_says(trouble), pytest.raises(InfraFailure, match="`ray status` says") as caught:
        deploy.ensure([SPEC], Patience.of(ClusterConfig()))
    assert type(trouble).__name__ in str(caught.value)
    assert caught.value.__cause__ is trouble


def test_who_waits_for_the_lock_can_be_stopped() -> None:
    """Another run may be deploying for minutes."""
    patience = Patience(60, 60)
    threading.Timer(0.1, patience.stop.set).start()
    began = time.monotonic()
    with lock_that_says(False), pytest.raises(InfraFailure, match="asked to stop"):
        deploy.ensure([SPEC], patience)
    assert time.monotonic() - began < 10


def with_bounds(low: int, high: int) -> dict[str, Any]:
    """The server as it runs, with these bounds."""
    found = app("RUNNING", 7)
    config = {"autoscaling_config": {"min_replicas": low, "max_replicas": high}}
    config["ray_actor_options"] = {"runtime_env": {}}
    found["deployments"]["RewardServer"] |= {"deployment_config": config, "target_num_replicas": 1}
    return found


def test_new_bounds_are_waited_for(script: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve takes them a moment later; whoever looks meanwhile would set the old ones again."""
    monkeypatch.setattr(deploy, "POLL_EVERY_S", 0.01)
    script(*[with_bounds(1, 1)] * 3, with_bounds(2, 2))
    began = time.monotonic()
    deploy._await_bounds([SPEC], Patience(60, 60))
    assert time.monotonic() - began >= 0.03, "not at the first look"
    monkeypatch.setattr(deploy, "BOUNDS_TIMEOUT_S", 0.05)
    script(with_bounds(1, 1))
    with pytest.raises(InfraFailure, match=f"has not taken the new bounds of {SPEC.app_name} within"):
        deploy._await_bounds([SPEC], Patience(60, 60))


def test_the_lock_is_given_back_when_serve_has_the_bounds_and_before_models_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, others would widen the bounds of before; later, they would wait for minutes."""
    events: list[str] = []

    @contextlib.contextmanager
    def lock(_: Patience) -> Iterator[None]:
        events.append("lock")
        yield
        events.append("given back")

    monkeypatch.setattr(deploy.serve, "start", lambda **_: None)
    monkeypatch.setattr(deploy, "_deploy_lock", lock)
    monkeypatch.setattr(deploy, "_to_deploy", lambda specs: ([], specs))
    for name in ("_deploy", "_await_bounds", "wait_until_running"):
        monkeypatch.setattr(deploy, name, lambda *_, name=name: events.append(name))
    deploy.ensure([SPEC], Patience(60, 60))
    assert events == ["lock", "_deploy", "_await_bounds", "given back", "wait_until_running"]


@pytest.mark.parametrize(
    ("failing", "order"),
    [
        ("_deploy", ["taken back", "lock given back"]),
        ("_await_bounds", ["taken back", "lock given back"]),
        ("wait_until_running", ["lock given back", "taken back"]),
    ],
)
def test_what_is_new_is_taken_back_wherever_the_start_ends(
    failing: str, order: list[str], script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find room later, and take it from others. Serve may have it before its answer is lost; if it
    does not, servers of this name are those of the next one that has the lock.
    """
    events: list[str] = []
    new = replace(SPEC, num_cpus=9.0)

    @contextlib.contextmanager
    def lock(_: Patience) -> Iterator[None]:
        try:
            yield
        finally:
            events.append("lock given back")

    def take_back(names: list[str]) -> None:
        assert names == [new.app_name]
        events.append("taken back")

    def fail(*_: object) -> None:
        raise InfraFailure("asked to stop")

    monkeypatch.setattr(deploy, "_to_deploy", lambda specs: ([new], specs))
    monkeypatch.setattr(deploy, "_deploy", lambda specs: None)
    monkeypatch.setattr(deploy.serve, "start", lambda **_: None)
    monkeypatch.setattr(deploy, "_deploy_lock", lock)
    monkeypatch.setattr(deploy, "_take_back", take_back)
    monkeypatch.setattr(deploy, failing, fail)
    script(with_bounds(2, 2))
    with pytest.raises(InfraFailure, match="asked to stop"):
        deploy.ensure([SPEC], Patience(60, 60))
    assert events == order


def test_who_waits_for_new_bounds_can_be_stopped(script: Callable[..., None]) -> None:
    """Serve may be busy for long."""
    script(with_bounds(1, 1))
    patience = Patience(60, 60)
    patience.stop.set()
    with pytest.raises(InfraFailure, match="asked to stop"):
        deploy._await_bounds([SPEC], patience)


def test_a_lock_that_is_not_given_back_does_not_undo_what_was_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: Callable[..., None]
) -> None:
    """The servers run; the lock's lease ends by itself."""
    monkeypatch.setattr(deploy, "_to_deploy", lambda specs: (specs, []))
    monkeypatch.setattr(deploy, "_deploy", lambda specs: None)
    script(app("RUNNING", 7))
    with lock_that_says(True, rx.GetTimeoutError("30 s")):
        deploy.ensure([SPEC], Patience(60, 60))
    assert "was not given back" in caplog.text


def test_whoever_deploys_for_long_keeps_the_lock(
    monkeypatch: pytest.MonkeyPatch, script: Callable[..., None]
) -> None:
    """Broken servers take minutes to end; a run that came meanwhile would deploy the same servers again."""
    monkeypatch.setattr(deploy, "LEASE_S", 0.8)
    lock, others = DeployLock(), []

    def deploy_slowly(_: object) -> tuple[list[ServerSpec], list[ServerSpec]]:
        for _ in range(20):
            time.sleep(0.1)
            others.append(lock.acquire("somebody else", 60))
        return [], []

    handle = Lock()
    handle.acquire = SimpleNamespace(remote=lock.acquire)
    handle.release = SimpleNamespace(remote=lock.release)
    monkeypatch.setattr(deploy, "_to_deploy", deploy_slowly)
    script(app("RUNNING", 7))
    with lock_that_says(True):
        deploy.ray.remote, deploy.ray.get = lambda **_: handle, lambda answer, timeout: answer
        deploy.ensure([SPEC], Patience(60, 60))
    assert others == [False] * 20
    time.sleep(0.3)
    assert lock.acquire("somebody else", 60), "it was given back, and not taken again"
