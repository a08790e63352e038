"""What the commands need from the roles, handed over by launch.py, the only file that imports roles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from astrolabe_ray.config.schema import ClusterConfig, ModelConfig, RewardConfig, RunConfig
from astrolabe_ray.server_status import BenchResult, DoorStatus, ServerStatus
from astrolabe_ray.video_tasks import VideoModelSpec, VideoPlan, VideoPool

if TYPE_CHECKING:
    from astrolabe_ray.roles import RewardPool
    from astrolabe_ray.run import Roles


@dataclass(frozen=True)
class DoorOptions:
    """Where reward servers are reached by HTTP, and by whom. Example: `DoorOptions("::1", 8100, "...")`."""

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True)
class WorkerRoom:
    """Workers that make videos, and what each of them reserves. Example: `WorkerRoom(2, 1, 0, 900)`."""

    num_workers: int
    num_cpus: float
    num_gpus: float
    chunk_timeout_s: float


class VideoScorer(Protocol):
    """Scores finished videos one by one."""

    def score(self, video: Path, prompt: str) -> Mapping[str, float]:
        """Of an mp4 or npy file, by reward key. Raises DataFailure, InfraFailure."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Wiring:
    """Doors to the roles. Each one imports its role when it is opened, so that errors come fast."""

    reward_problems: Callable[[RewardConfig], Sequence[tuple[str, str]]]
    """Why a reward can't be scored here (no scorer, file, package): the option to blame or "", and a line."""

    plan_scenes: Callable[[str, ModelConfig, int | None], VideoPlan]
    """Plan of a prompt's scenes, in a video of so many chunks or of the length that they have."""
    draw_sheet: Callable[[Path, VideoPlan, ModelConfig, int], bytes]
    """Contact sheet, as png, of a video file of so many frames."""
    make_video_pool: Callable[[VideoModelSpec, WorkerRoom | None], VideoPool]
    """Workers that make videos, not started; without room: one in this process, without Ray."""
    make_video_rewards: Callable[[Sequence[RewardConfig], ClusterConfig | None], RewardPool]
    """What scores them, not started: servers of this cluster; None: in this process, without Ray."""
    pool_scorer: Callable[[Sequence[RewardConfig], ClusterConfig | None], VideoScorer]
    """What scores finished videos: servers of this cluster; None: in this process, without Ray."""
    door_scorer: Callable[[str, str, Sequence[str]], VideoScorer]
    """The same through the HTTP door of this URL, with this token; of these rewards, or of all for none."""

    # Those below need a connection to Ray.
    make_roles: Callable[[RunConfig], Roles]
    """The roles of a run, not started."""
    start_rewards: Callable[[RunConfig], None]
    """Start the reward servers of a config that do not run yet."""
    stop_rewards: Callable[[RunConfig], None]
    running_rewards: Callable[[Sequence[RewardConfig]], Collection[str]]
    """Scorers of the rewards whose server runs already."""
    reward_servers: Callable[[], Sequence[ServerStatus]]
    """All reward servers of the cluster."""
    scale_rewards: Callable[[str, int, int], None]
    """Give a running server another minimum and maximum of replicas."""
    bench_rewards: Callable[[str, float, int, tuple[int, int, int]], BenchResult]
    """Ask a running server for so many seconds, with so many requests at a time, for videos of this size."""
    open_door: Callable[[RunConfig, DoorOptions], str]
    """Open an HTTP door to the reward servers of a config, which run already; its URL."""
    close_doors: Callable[[], None]
    doors: Callable[[], Sequence[DoorStatus]]
    """The HTTP doors of the cluster."""
