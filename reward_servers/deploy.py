"""Reward servers on a cluster: found running and reused, or started; never restarted by accident.

`serve.run` restarts every replica of an application that runs, even with the same code, so nothing is
deployed before a look at what is there, and only by one process at a time.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from astrolabe_ray.errors import InfraFailure
from reward_servers.app import ServerSpec, application
from reward_servers.deploy_lock import DeployLock

BROKEN = (ApplicationStatus.UNHEALTHY, ApplicationStatus.DEPLOY_FAILED)
PREFIX = "reward-"
NAMESPACE = "astrolabe-rewards"
LOCK_TIMEOUT_S = 180.0
LEASE_S = 120.0
"""A holder that died no longer blocks others after this time; a server starts well within it."""

logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing serve has just set it to INFO


@dataclass(frozen=True)
class ServerStatus:
    """A reward server as it is now."""

    name: str
    status: str  # RUNNING, DEPLOYING, UNHEALTHY, ...
    num_replicas: int


def connect(specs: Sequence[ServerSpec]) -> list[DeploymentHandle]:
    """Handles to the servers of `specs`, started where needed. Raises InfraFailure as `ensure` does.

    Each handle has a router that goes on asking the replicas: shut it down before leaving the cluster.
    """
    ensure(specs)
    return [serve.get_app_handle(spec.app_name).options(_by_reference=True) for spec in specs]


def ensure(specs: Sequence[ServerSpec]) -> None:
    """Start those servers of `specs` that are not there, all at the same time.

    Returns when all answer. Raises InfraFailure when one does not start.
    """
    serve.start(http_options=HTTPOptions(location=ProxyLocation.Disabled))
    with _deploy_lock():
        running = serve.status().applications
        missing = [
            spec for spec in specs if spec.app_name not in running or running[spec.app_name].status in BROKEN
        ]
        targets = [
            serve.RunTarget(target=application(spec), name=spec.app_name, route_prefix=None)
            for spec in missing
        ]
        try:
            if targets:
                serve.run_many(targets)
        except RuntimeError as error:
            names = ", ".join(spec.app_name for spec in missing)
            raise InfraFailure(f"of the reward servers {names} one does not start: {error}") from error


def status(prefix: str = PREFIX) -> list[ServerStatus]:
    """All reward servers of the cluster, or other applications of ours, by name. Starts nothing."""
    if not _serve_runs():
        return []
    found = []
    for name, app in sorted(serve.status().applications.items()):
        if name.startswith(prefix):
            replicas = sum(sum(d.replica_states.values()) for d in app.deployments.values())
            found.append(ServerStatus(name, app.status.value, replicas))
    return found


def down(names: Sequence[str]) -> None:
    """Stop these servers and wait until they are gone. Other runs lose them, too."""
    for name in names:
        serve.delete(name)


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
