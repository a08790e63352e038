"""Reward servers on a cluster: found running and reused, or started; never restarted by accident.

`serve.run` restarts every replica of an application that runs, even with the same code, so nothing is
deployed before a look at what is there, and only by one process at a time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from astrolabe_ray.config.schema import ClusterConfig
from astrolabe_ray.errors import ConfigError, InfraFailure
from astrolabe_ray.server_status import ServerStatus
from reward_servers.app import ServerSpec, application
from reward_servers.deploy_lock import DeployLock
from reward_servers.readiness import (
    POLL_EVERY_S,
    Patience,
    is_short_of_room,
    serve_details,
    wait_until_running,
)
from reward_servers.usage import ReplicaReport, clients_of, quantiles, videos_per_s

BROKEN = (ApplicationStatus.UNHEALTHY, ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING)
PREFIX = "reward-"
NAMESPACE = "astrolabe-rewards"
LOCK_TIMEOUT_S = 180.0
LOCK_ANSWER_S = 30.0
LEASE_S = 120.0
"""A holder that died no longer blocks others after this time; one that lives renews its lease. Deploying
takes seconds, or minutes when broken servers have to end first; none loads while the lock is held."""
REPORT_TIMEOUT_S = 5.0
BOUNDS_TIMEOUT_S = 30.0

logger = logging.getLogger(__name__)
logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing serve has just set it to INFO


@dataclass(frozen=True)
class _Details:
    """Of a server as it runs. Example: `_Details(1, 1, 4, {"working_dir": None})`."""

    target_replicas: int
    min_replicas: int
    max_replicas: int
    runtime_env: Mapping[str, Any]


def connect(specs: Sequence[ServerSpec], patience: Patience) -> list[DeploymentHandle]:
    """Handles to the servers of `specs`, started where needed. Raises as `ensure` does.

    Each handle has a router that goes on asking the replicas: shut it down before leaving the cluster.
    """
    ensure(specs, patience)
    return [handle_of(spec.app_name) for spec in specs]


def handle_of(name: str) -> DeploymentHandle:
    """Passes references on as they are, whatever Serve's environment variables say."""
    return serve.get_app_handle(name).options(_by_reference=True)


def ensure(specs: Sequence[ServerSpec], patience: Patience) -> None:
    """Start those servers of `specs` that are not there, all at the same time, and widen the bounds of
    those that run with fewer replicas than asked for.

    Returns when all answer, also those that somebody else is starting. Raises ConfigError when one has no
    room, InfraFailure when one does not start, when Ray does not answer, and when `patience` was stopped.
    What was started here and has no room is taken back: it would take that of somebody else later.
    """
    with _ray_failures_named():
        serve.start(http_options=HTTPOptions(location=ProxyLocation.Disabled))
        with _deploy_lock(patience):
            new, wider = _to_deploy(specs)
            with _taken_back_on_failure(new):  # under the lock: after it these may be somebody else's
                _deploy([*new, *wider])
                _await_bounds(wider, patience)
        with _taken_back_on_failure(new):
            wait_until_running(specs, patience)


def _to_deploy(specs: Sequence[ServerSpec]) -> tuple[list[ServerSpec], list[ServerSpec]]:
    """The servers that are not there, and those that need wider bounds. Broken ones are taken down first."""
    running = serve.status().applications
    for spec in specs:
        if spec.app_name in running and running[spec.app_name].status in BROKEN:
            serve.delete(spec.app_name)  # of the same version, it would stay as it is
            del running[spec.app_name]
    here = {spec.app_name: _details(spec.app_name) for spec in specs if spec.app_name in running}
    asked = [_widened(spec, here[spec.app_name]) for spec in specs if spec.app_name in here]
    wider = [spec for spec in asked if spec]
    new = [spec for spec in specs if spec.app_name not in here]
    return new, wider


@contextmanager
def _taken_back_on_failure(specs: Sequence[ServerSpec]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if specs:
            _take_back([spec.app_name for spec in specs])
        raise


def _take_back(names: Sequence[str]) -> None:
    found = serve_details()
    for name in names:
        if name in found and is_short_of_room(found[name]):
            serve.delete(name, _blocking=False)


def scale(name: str, min_replicas: int, max_replicas: int) -> None:
    """Let a running server have so many replicas; those that it has stay, or go when they are too many.

    Returns when Serve has the bounds. Raises ConfigError for bounds that are none, InfraFailure when no
    replica answers.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise ConfigError(
            f"a server can't have {min_replicas} to {max_replicas} replicas. "
            f"Try --min={max(1, min_replicas)} --max={max(1, min_replicas, max_replicas)}."
        )
    patience = Patience.of(ClusterConfig())
    with _ray_failures_named(), _deploy_lock(patience):
        spec = spec_of(name)
        bounds = replace(spec.scaling, min_replicas=min_replicas, max_replicas=max_replicas)
        scaled = replace(spec, scaling=bounds)
        _deploy([scaled])
        _await_bounds([scaled], patience)


def status() -> list[ServerStatus]:
    """All reward servers of the cluster, by name. Starts nothing."""
    return [
        _status_of(name, app.status.value, reports_of(name) if _has_replicas(app) else [])
        for name, app in applications(PREFIX).items()
    ]


def applications(prefix: str) -> dict[str, Any]:
    """What Serve says of each application whose name begins with `prefix`, by name. Starts nothing."""
    if not _serve_runs():
        return {}
    return {name: app for name, app in sorted(serve.status().applications.items()) if name.startswith(prefix)}


def reports_of(name: str) -> list[ReplicaReport]:
    """What each replica of a server says of itself; without those that do not answer."""
    handle = handle_of(name)
    try:
        answers = handle.broadcast("report").results(timeout_s=REPORT_TIMEOUT_S, return_exceptions=True)
    except (TimeoutError, RayError, DeploymentUnavailableError):
        return []
    finally:
        handle.shutdown()
    return [answer for answer in answers if isinstance(answer, ReplicaReport)]


def spec_of(name: str) -> ServerSpec:
    """How a running server was started. Raises InfraFailure when no replica answers."""
    for report in reports_of(name):
        assert isinstance(report.spec, ServerSpec)
        return report.spec
    raise InfraFailure(
        f"no replica of {name} answers; what is wrong shows `rewards status` or `serve status`"
    )


def hold(specs: Sequence[ServerSpec], client: str) -> None:
    """Have running servers stay for their idle timeout from now on, if they would have gone earlier.

    Raises InfraFailure when one does not answer.
    """
    with _ray_failures_named():
        for spec in specs:
            handle = handle_of(spec.app_name)
            handle.broadcast("hold", client, spec.scaling.idle_timeout_s).results(timeout_s=REPORT_TIMEOUT_S)
            handle.shutdown()


def down(names: Sequence[str]) -> None:
    """Stop these servers and wait until they are gone. Other runs lose them, too.

    Raises InfraFailure when one does not end.
    """
    with _ray_failures_named():
        for name in names:
            serve.delete(name)


def _deploy(specs: Sequence[ServerSpec]) -> None:
    """Returns at once. Those that run keep the environment that they were started in, that of another job."""
    targets = [
        serve.RunTarget(
            target=application(spec, _details(spec.app_name).runtime_env or _own_environment(spec)),
            name=spec.app_name,
            route_prefix=None,
        )
        for spec in specs
    ]
    if targets:
        serve.run_many(targets, wait_for_applications_running=False)


def _await_bounds(specs: Sequence[ServerSpec], patience: Patience) -> None:
    """Until Serve has the bounds of `specs`: whoever looks before that sees, and widens, the old ones."""
    until = time.monotonic() + BOUNDS_TIMEOUT_S
    for spec in specs:
        wanted = (spec.scaling.min_replicas, spec.scaling.max_replicas)
        while True:
            here = _details(spec.app_name)
            if (here.min_replicas, here.max_replicas) == wanted:
                break
            if time.monotonic() > until:
                raise InfraFailure(
                    f"Serve has not taken the new bounds of {spec.app_name} within {BOUNDS_TIMEOUT_S:g} s; "
                    "what is wrong shows `serve status`"
                )
            patience.pause(POLL_EVERY_S)


def _widened(spec: ServerSpec, here: _Details) -> ServerSpec | None:
    """`spec` with bounds that hold those of the running server, too; None if that has them already."""
    low = max(here.min_replicas, spec.scaling.min_replicas)
    high = max(here.max_replicas, spec.scaling.max_replicas)
    if (low, high) == (here.min_replicas, here.max_replicas):
        return None
    return replace(spec, scaling=replace(spec.scaling, min_replicas=low, max_replicas=high))


def _own_environment(spec: ServerSpec) -> dict[str, Any]:
    """That of this job with what the scorer wants of its own."""
    return {**ray.get_runtime_context().runtime_env, **spec.runtime_env}


def _details(name: str) -> _Details:
    """What Serve holds of a server; zeros for one that is not there."""
    app = serve_details().get(name, {"deployments": {}})
    for deployment in app["deployments"].values():
        config = deployment["deployment_config"]
        bounds, environment = config["autoscaling_config"], config["ray_actor_options"]["runtime_env"]
        target = deployment["target_num_replicas"]
        return _Details(target, bounds["min_replicas"], bounds["max_replicas"], environment)
    return _Details(0, 0, 0, {})


def _status_of(name: str, app_status: str, reports: Sequence[ReplicaReport]) -> ServerStatus:
    here = _details(name)
    p50_s, p99_s = quantiles(reports, 0.5, 0.99)
    spec = next((report.spec for report in reports), None)
    return ServerStatus(
        name,
        app_status,
        spec.scorer if isinstance(spec, ServerSpec) else "",
        num_replicas=len(reports),
        target_replicas=here.target_replicas,
        min_replicas=here.min_replicas,
        max_replicas=here.max_replicas,
        num_waiting=sum(report.num_waiting for report in reports),
        p50_s=p50_s,
        p99_s=p99_s,
        videos_per_s=videos_per_s(reports),
        clients=clients_of(reports),
        lease_left_s=min((report.lease_left_s for report in reports), default=math.inf),
    )


def _has_replicas(app: Any) -> bool:
    """Whether somebody can answer; a question to a server without replicas waits for one."""
    return any(deployment.replica_states.get("RUNNING") for deployment in app.deployments.values())


def _serve_runs() -> bool:
    """Whether this cluster has a Serve controller; asking `serve.status` would start one."""
    actors: Any = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"] == "SERVE_CONTROLLER_ACTOR" for actor in actors)


@contextmanager
def _deploy_lock(patience: Patience) -> Iterator[None]:
    """Raises InfraFailure when somebody else has it too long, and when `patience` was stopped."""
    lock: Any = (
        ray.remote(num_cpus=0)(DeployLock)
        .options(name="deploy-lock", namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        .remote()
    )
    me, deadline = uuid.uuid4().hex, time.monotonic() + LOCK_TIMEOUT_S
    while not ray.get(lock.acquire.remote(me, LEASE_S), timeout=LOCK_ANSWER_S):
        if time.monotonic() > deadline:
            raise InfraFailure(f"another process has been starting reward servers for {LOCK_TIMEOUT_S:g} s")
        patience.pause(0.2)
    try:
        with _lease_renewed(lock, me):
            yield
    finally:
        try:
            ray.get(lock.release.remote(me), timeout=LOCK_ANSWER_S)
        except (GetTimeoutError, RayActorError) as error:
            logger.warning("the lock of the reward servers was not given back, others wait: %r", error)


@contextmanager
def _lease_renewed(lock: Any, me: str) -> Iterator[None]:
    """A thread renews it until the end of the block: nothing is renewed after that."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(LEASE_S / 4):
            try:
                ray.get(lock.acquire.remote(me, LEASE_S), timeout=LOCK_ANSWER_S)
            except RayError as error:
                logger.warning("the lock of the reward servers was not renewed, tried again: %r", error)

    thread = threading.Thread(target=renew, name="reward-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _ray_failures_named() -> Iterator[None]:
    """Who starts or ends servers is told in one line that the cluster itself is in trouble.

    Raises InfraFailure for a process of Ray Serve, or the lock, that died or does not answer.
    """
    try:
        yield
    except (RayError, DeploymentUnavailableError, TimeoutError) as error:
        raise InfraFailure(
            f"Ray does not answer about the reward servers: {type(error).__name__}: {error}. `ray status` "
            "says whether a node was lost, `serve status` what Serve does; once both answer, start again."
        ) from error
