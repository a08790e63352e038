"""The HTTP door as an application of Ray Serve: it outlives the command that opened it and is restarted.

It holds its reward servers from when it opens until it closes, so none of them goes for being idle.

Its replica listens itself, on the head node. Serve's own proxy would have to be asked for when Serve starts,
which is with the first run that wants rewards, long before anybody asks for HTTP; and it would open a port on
every node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.server_status import DoorStatus
from reward_servers.app import ServerSpec
from reward_servers.deploy import applications, down
from reward_servers.desk import Desk
from reward_servers.http import make_app
from reward_servers.http_thread import HttpThread
from reward_servers.pool import ServeRewardPool
from reward_servers.readiness import Patience
from reward_servers.uploads import UploadLimits

PREFIX = "scoring-door-"
MAX_ATTEMPTS = 2
"""Of one question to a reward server; after that the caller is told to come back, and need not wait here."""
ON_HEAD_NODE = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class DoorSpec:
    """A door. The token itself stays with its owner.

    Example: `DoorSpec(config.rewards, "127.0.0.1", 8100, digest_of(token), 3600.0)`.
    """

    rewards: tuple[RewardConfig, ...]
    host: str
    port: int
    token_digest: bytes = field(repr=False)
    idle_timeout_s: float | None  # of the servers, which the open door holds; None: for ever

    @property
    def app_name(self) -> str:
        return f"{PREFIX}{self.port}"


class Door:
    """A replica: listens from when it is made."""

    def __init__(self, spec: DoorSpec) -> None:
        """Raises InfraFailure for a port that is taken."""
        patience = {"max_attempts": MAX_ATTEMPTS}
        rewards = [reward.model_copy(update=patience) for reward in spec.rewards]
        desk = Desk(
            rewards,
            lambda some: ServeRewardPool(
                some, client=spec.app_name, idle_timeout_s=spec.idle_timeout_s, connect=_handles
            ),
            ray.put,
        )
        app = make_app(desk, token_digest=spec.token_digest, limits=UploadLimits())
        self._server = HttpThread(app, spec.host, spec.port)

    def check_health(self) -> None:
        """Serve replaces a replica that no longer listens."""
        if not self._server.is_alive:
            raise RuntimeError("the HTTP server has ended")

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            self._server.stop()


def open_door(spec: DoorSpec) -> str:
    """Open the door for reward servers that run; returns its URL. An open one on this port is closed first.

    Raises InfraFailure when it does not open.
    """
    close_doors([spec.app_name])
    deployment: Any = serve.deployment(
        Door,
        name="Door",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": ON_HEAD_NODE},
        max_constructor_retry_count=1,
    )
    try:
        serve.run(deployment.bind(spec), name=spec.app_name, route_prefix=None)
    except RuntimeError as error:
        reason = _last_message(spec.app_name)
        close_doors([spec.app_name])
        raise InfraFailure(f"the HTTP door does not open: {reason}") from error
    host = f"[{spec.host}]" if ":" in spec.host else spec.host
    return f"http://{host}:{spec.port}"


def close_doors(names: Sequence[str] | None = None) -> None:
    """Close the doors of these names, or all; waits until they are closed."""
    down([door.name for door in doors() if names is None or door.name in names])


def doors() -> list[DoorStatus]:
    """The doors of the cluster. Starts nothing."""
    return [DoorStatus(name, app.status.value) for name, app in applications(PREFIX).items()]


@lru_cache
def _handle(app_name: str) -> DeploymentHandle:
    """One for all combinations of rewards, since each has a router that goes on asking its replicas."""
    return serve.get_app_handle(app_name).options(_by_reference=True)


def _handles(specs: Sequence[ServerSpec], _: Patience) -> list[DeploymentHandle]:
    """Of servers that run. Raises InfraFailure for one that does not: a door starts none."""
    try:
        return [_handle(spec.app_name) for spec in specs]
    except RayServeException as reason:
        raise InfraFailure(
            f"a reward server of this door is gone ({reason}); `rewards up` with its config starts it"
        ) from None


def _last_message(app_name: str) -> str:
    """What Serve says of an application that failed; the last line of a traceback if there is one."""
    app = serve.status().applications.get(app_name)
    texts = [d.message for d in app.deployments.values()] if app is not None else []
    lines = [line for text in texts for line in text.strip().splitlines() if "InfraFailure" in line]
    return lines[-1].strip() if lines else " ".join(texts) or "Serve says nothing"
