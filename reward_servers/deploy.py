"""Reward servers on a cluster: found running and reused, or started; never restarted by accident.

`serve.run` restarts every replica of an application that runs, even with the same code, so nothing is
deployed before a look at what is there, and only by one process at a time.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from astrolabe_ray.errors import ConfigError, InfraFailure
from astrolabe_ray.server_status import ServerStatus
from reward_servers.app import ServerSpec, application
from reward_servers.deploy_lock import DeployLock
from reward_servers.usage import ReplicaReport, clients_of, quantiles, videos_per_s

BROKEN = (ApplicationStatus.UNHEALTHY, ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DELETING)
PREFIX = "reward-"
NAMESPACE = "astrolabe-rewards"
LOCK_TIMEOUT_S = 180.0
LEASE_S = 120.0
"""A holder that died no longer blocks others after this time; a server starts well within it."""
REPORT_TIMEOUT_S = 5.0

logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing serve has just set it to INFO


@dataclass(frozen=True)
class _Details:
    """Of a server as it runs. Example: `_Details(1, 1, 4, {"working_dir": None})`."""

    target_replicas: int
    min_replicas: int
    max_replicas: int
    runtime_env: Mapping[str, Any]


def connect(specs: Sequence[ServerSpec]) -> list[DeploymentHandle]:
    """Handles to the servers of `specs`, started where needed. Raises InfraFailure as `ensure` does.

    Each handle has a router that goes on asking the replicas: shut it down before leaving the cluster.
    """
    ensure(specs)
    return [handle_of(spec.app_name) for spec in specs]


def handle_of(name: str) -> DeploymentHandle:
    """Passes references on as they are, whatever Serve's environment variables say."""
    return serve.get_app_handle(name).options(_by_reference=True)


def ensure(specs: Sequence[ServerSpec]) -> None:
    """Start those servers of `specs` that are not there, all at the same time, and widen the bounds of
    those that run with fewer replicas than asked for.

    Returns when all answer. Raises InfraFailure when one does not start.
    """
    serve.start(http_options=HTTPOptions(location=ProxyLocation.Disabled))
    with _deploy_lock():
        running = serve.status().applications
        for spec in specs:
            if spec.app_name in running and running[spec.app_name].status in BROKEN:
                serve.delete(spec.app_name)  # of the same version, it would stay as it is
                del running[spec.app_name]
        here = {spec.app_name: _details(spec.app_name) for spec in specs if spec.app_name in running}
        wider = [_widened(spec, here[spec.app_name]) for spec in specs if spec.app_name in here]
        _deploy([spec for spec in specs if spec.app_name not in here] + [spec for spec in wider if spec])


def scale(name: str, min_replicas: int, max_replicas: int) -> None:
    """Let a running server have so many replicas; those that it has stay, or go when they are too many.

    Returns at once. Raises ConfigError for bounds that are none, InfraFailure when no replica answers.
    """
    if not 1 <= min_replicas <= max_replicas:
        raise ConfigError(
            f"a server can't have {min_replicas} to {max_replicas} replicas. "
            f"Try --min={max(1, min_replicas)} --max={max(1, min_replicas, max_replicas)}."
        )
    with _deploy_lock():
        spec = spec_of(name)
        bounds = replace(spec.scaling, min_replicas=min_replicas, max_replicas=max_replicas)
        _deploy([replace(spec, scaling=bounds)], wait=False)


def status() -> list[ServerStatus]:
    """All reward servers of the cluster, by name. Starts nothing."""
    if not _serve_runs():
        return []
    found = serve.status().applications
    return [
        _status_of(name, app.status.value, reports_of(name) if _has_replicas(app) else [])
        for name, app in sorted(found.items())
        if name.startswith(PREFIX)
    ]


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
    """Have running servers stay for their idle timeout from now on, if they would have gone earlier."""
    for spec in specs:
        handle = handle_of(spec.app_name)
        handle.broadcast("hold", client, spec.scaling.idle_timeout_s).results(timeout_s=REPORT_TIMEOUT_S)
        handle.shutdown()


def down(names: Sequence[str]) -> None:
    """Stop these servers and wait until they are gone. Other runs lose them, too."""
    for name in names:
        serve.delete(name)


def _deploy(specs: Sequence[ServerSpec], *, wait: bool = True) -> None:
    """Those that run keep the environment that they were started in, which is that of another job."""
    targets = [
        serve.RunTarget(
            target=application(spec, _details(spec.app_name).runtime_env or _own_environment(spec)),
            name=spec.app_name,
            route_prefix=None,
        )
        for spec in specs
    ]
    try:
        if targets:
            serve.run_many(targets, wait_for_applications_running=wait)
    except RuntimeError as error:
        names = [spec.app_name for spec in specs]
        raise InfraFailure(
            f"of the reward servers {', '.join(names)} one does not start: {_why_none_starts(names) or error}"
        ) from error


def _why_none_starts(names: Sequence[str]) -> str:
    """What the constructors of replicas raised: the last line of each traceback."""
    found = serve.status().applications
    apps = [found[name] for name in names if name in found and found[name].status in BROKEN]
    messages = [deployment.message for app in apps for deployment in app.deployments.values()]
    return "; ".join(message.strip().splitlines()[-1].strip() for message in messages if message.strip())


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
    """What Serve holds of a server; zeros for one that is not there.

    Serve's public status does not tell it; the dashboard asks its controller for the same details.
    """
    client: Any = _get_global_client()
    app = client.get_serve_details()["applications"].get(name, {"deployments": {}})
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
def _deploy_lock() -> Iterator[None]:
    lock: Any = (
        ray.remote(num_cpus=0)(DeployLock)
        .options(name="deploy-lock", namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        .remote()
    )
    me, deadline = uuid.uuid4().hex, time.monotonic() + LOCK_TIMEOUT_S
    while not ray.get(lock.acquire.remote(me, LEASE_S), timeout=LOCK_TIMEOUT_S):
        if time.monotonic() > deadline:
            raise InfraFailure(f"another process has been starting reward servers for {LOCK_TIMEOUT_S:g} s")
        time.sleep(0.2)
    try:
        yield
    finally:
        ray.get(lock.release.remote(me), timeout=LOCK_TIMEOUT_S)
