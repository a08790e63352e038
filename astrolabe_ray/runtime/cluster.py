"""Joins the Ray cluster of a run, or starts one on this machine.

Ray turns token authentication on for clusters that `ray.init` starts and keeps the token in
~/.ray/auth_token. Joining by `auto` finds it; a cluster named in RAY_ADDRESS or `cluster.address`
wants RAY_AUTH_MODE=token and the token (RAY_AUTH_TOKEN or that file).
"""

from __future__ import annotations

import logging
import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

from astrolabe_ray.config.schema import ClusterConfig
from astrolabe_ray.errors import AstrolabeError, ConfigError

LISTEN_TIMEOUT_S = 5.0
LOOK_LESS_OFTEN = ("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")
"""Ray Serve's controller looks at its replicas ten times a second: 4 % of a machine with two cores."""


@dataclass(frozen=True)
class Cluster:
    """The connected cluster. Example: `Cluster("10.0.0.1:6379", started_here=False, dashboard_url=None)`."""

    address: str
    started_here: bool  # ends with this process
    dashboard_url: str | None  # for people, e.g. "http://127.0.0.1:8265"


def connect(config: ClusterConfig, *, min_cpus: float = 0, may_start: bool = True) -> Cluster:
    """Join or start a cluster; Ray itself stays quiet.

    `auto` joins the cluster of RAY_ADDRESS (inside a Ray job: the job's), else, or if that says `auto`
    too, the one that `ray start` left running here, else starts one; `local` always starts one;
    anything else is an address. A cluster that is started here offers at least `min_cpus`: on a small
    machine processes share the cores, and a run gets slower instead of impossible. Raises ConfigError, also
    where a cluster would have to be started and `may_start` is False, and AstrolabeError when the cluster
    runs other versions.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning, GPUs stay as they are
    named = os.environ.get("RAY_ADDRESS", "") if config.address == "auto" else config.address
    named = "" if named == "auto" else named
    if named == "local" or (not named and not _is_one_running()):
        if not may_start:
            raise ConfigError(
                "there is no running Ray cluster, and one that starts here would end with this command. "
                "Start one with `ray start --head`, or set RAY_ADDRESS."
            )
        os.environ.setdefault(*LOOK_LESS_OFTEN)
        return _init(config, "local", num_cpus=max(os.cpu_count() or 1, math.ceil(min_cpus)))
    try:
        if named:
            _require_listening(named)
        return _init(config, named or None)  # None: what `ray start` left, with its token
    except RuntimeError as reason:
        if not str(reason).startswith("Version mismatch"):  # Ray has no type of its own for it
            raise
        raise AstrolabeError(
            f"can't join the Ray cluster at '{named or _noted_address()}': {' '.join(str(reason).split())}. "
            "Use the environment that the cluster was started from, or start a cluster from this one."
        ) from reason
    except (ConnectionError, ValueError, AuthenticationError) as reason:
        raise ConfigError(
            f"can't join the Ray cluster at '{named or _noted_address()}': {reason}. Start it "
            "with `ray start --head`, or unset RAY_ADDRESS and use --config.cluster.address=local. If it "
            "asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        ) from reason


def _address_file() -> Path:
    """Where `ray start` notes the address of the cluster on this machine, as long as it runs."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


def _noted_address() -> str:
    return _address_file().read_text().strip()


def _is_one_running() -> bool:
    """Whether the noted cluster answers; a machine that went down leaves a stale or an empty note."""
    try:
        _require_listening(_noted_address())
    except (FileNotFoundError, ConnectionError, ValueError):
        return False
    return True


def _require_listening(address: str) -> None:
    """Raises ConnectionError within seconds where `ray.init` would try again for minutes.

    Raises ValueError if `address` is not host:port, with or without ray:// before it.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is host:port or ray://host:port")
    try:
        socket.create_connection((host, int(port)), timeout=LISTEN_TIMEOUT_S).close()
    except OSError as reason:
        raise ConnectionError(f"nobody listens there ({reason})") from None


def _init(config: ClusterConfig, address: str | None, num_cpus: int | None = None) -> Cluster:
    context = ray.init(
        address=address,
        num_cpus=num_cpus,
        namespace=config.namespace,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    url = f"http://{context.dashboard_url}" if context.dashboard_url else None
    joined = str(ray.get_runtime_context().gcs_address)
    return Cluster(joined, started_here=num_cpus is not None, dashboard_url=url)
