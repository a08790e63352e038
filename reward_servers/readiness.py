"""Reward servers on their way up: waited for with a limit, and no longer than whoever waits wants to.

Serve itself would wait for ever for a replica that finds no room.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from astrolabe_ray.config.schema import ClusterConfig
from astrolabe_ray.errors import AstrolabeError, ConfigError, InfraFailure
from reward_servers.app import ServerSpec

POLL_EVERY_S = 0.2


@dataclass(frozen=True)
class Patience:
    """How long servers may take to come up. `stop`, set from another thread, ends the wait at once."""

    placement_timeout_s: float
    load_timeout_s: float
    stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, cluster: ClusterConfig) -> Patience:
        return cls(cluster.placement_timeout_s, cluster.reward_load_timeout_s)

    def pause(self, seconds: float) -> None:
        """Raises InfraFailure when it was stopped."""
        if self.stop.wait(seconds):
            raise InfraFailure("whoever waited for the reward servers was asked to stop")


def wait_until_running(specs: Sequence[ServerSpec], patience: Patience) -> None:
    """Until these servers, which are deployed, all answer.

    Raises ConfigError for one that has no room, InfraFailure for one that fails, is taken down or takes too
    long, and when `patience` was stopped.
    """
    began = time.monotonic()
    placed_at = {spec.app_name: began for spec in specs}  # when it last was not short of room
    while True:
        apps, now = serve_details(), time.monotonic()
        late = [spec for spec in specs if not _is_running(spec, apps)]
        if not late:
            return
        for spec in late:
            app = apps[spec.app_name]
            if not is_short_of_room(app) or spec.packages:  # Ray installs those before there is a process
                placed_at[spec.app_name] = now
            if now - placed_at[spec.app_name] > patience.placement_timeout_s:
                raise _no_room(spec, app, patience)
            if now - began > patience.placement_timeout_s + patience.load_timeout_s:
                raise _too_slow(spec, app, patience)
        patience.pause(POLL_EVERY_S)


def serve_details() -> dict[str, Any]:
    """By name, what Serve holds of all applications. Serve's public status does not tell bounds, environments
    and processes; the dashboard asks its controller for the same details."""
    client: Any = _get_global_client()
    return client.get_serve_details()["applications"]


def is_short_of_room(app: Mapping[str, Any]) -> bool:
    """Whether a replica has no process yet, or Serve has not begun; it leaves out what it does not know."""
    replicas = [each for deployment in app["deployments"].values() for each in deployment["replicas"]]
    if not replicas and app["status"] == ApplicationStatus.DEPLOYING:
        return True
    return any(each["state"] == "STARTING" and "pid" not in each for each in replicas)


def _is_running(spec: ServerSpec, apps: Mapping[str, Any]) -> bool:
    """Raises InfraFailure for one that is gone or can't be started."""
    name = spec.app_name
    if name not in apps or apps[name]["status"] == ApplicationStatus.DELETING:
        raise InfraFailure(f"{name} was taken down while it was starting; start again what needs it")
    if apps[name]["status"] == ApplicationStatus.DEPLOY_FAILED:
        raise InfraFailure(f"the reward server {name} does not start: {_why(apps[name])}")
    return apps[name]["status"] == ApplicationStatus.RUNNING


def _why(app: Mapping[str, Any]) -> str:
    """What the constructors of replicas raised: the last line of each traceback; else what Serve says."""
    last = [message.splitlines()[-1].strip() for message in _messages(app)]
    return "; ".join(last) or app["message"]


def _messages(app: Mapping[str, Any]) -> Collection[str]:
    """What Serve says of the deployments."""
    found = [deployment["message"].strip() for deployment in app["deployments"].values()]
    return [message for message in found if message]


def _no_room(spec: ServerSpec, app: Mapping[str, Any], patience: Patience) -> AstrolabeError:
    said = " Serve says: " + " ".join(" ".join(_messages(app)).split()) if _messages(app) else ""
    return ConfigError(
        f"no room for {spec.app_name} after {patience.placement_timeout_s:g} s: each replica needs "
        f"{spec.num_cpus:g} CPU and {spec.num_gpus:g} GPU of one node, and there are to be "
        f"{spec.scaling.min_replicas}.{said} Lower num_cpus, num_gpus or min_replicas of the reward, end "
        "what else runs on the cluster, add nodes, or raise cluster.placement_timeout_s."
    )


def _too_slow(spec: ServerSpec, app: Mapping[str, Any], patience: Patience) -> AstrolabeError:
    said = " ".join(" ".join(_messages(app)).split()) or "nothing"
    seconds = patience.placement_timeout_s + patience.load_timeout_s
    return InfraFailure(
        f"{spec.app_name} does not answer after {seconds:g} s; it is {app['status']}, and Serve says: "
        f"{said}. What it does is in the log of its replica, on Ray's dashboard. If it only needs longer to "
        "load, raise cluster.reward_load_timeout_s."
    )
