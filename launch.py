"""Composition root: the only file that knows all roles. `python launch.py --help` says what it can do.

Heavy imports happen inside these functions, after everything that can be checked without them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from astrolabe_ray.cli.app import make_app
from astrolabe_ray.cli.wiring import DoorOptions, VideoScorer, Wiring, WorkerRoom
from astrolabe_ray.config.schema import ClusterConfig, ModelConfig, RewardConfig, RunConfig
from astrolabe_ray.errors import AstrolabeError, ConfigError
from astrolabe_ray.server_status import BenchResult, DoorStatus, ServerStatus
from astrolabe_ray.video_tasks import VideoModelSpec, VideoPlan, VideoPool

if TYPE_CHECKING:
    from astrolabe_ray.roles import RewardPool
    from astrolabe_ray.run import Roles


def main() -> None:
    """Run one command. Exits with 2 and one line for each mistake in the config, with 1 and a line for what
    failed on the way. ASTROLABE_TRACEBACK=1 shows where it was raised. Faults of the program always do."""
    try:
        make_app(WIRING)()
    except AstrolabeError as error:
        if os.environ.get("ASTROLABE_TRACEBACK") == "1":
            raise
        print("error: " + str(error).replace("\n", "\n       "), file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def reward_problems(reward: RewardConfig) -> Sequence[tuple[str, str]]:
    from reward_servers.scorers import reward_problems

    return reward_problems(reward)


def plan_scenes(prompt: str, model: ModelConfig, num_chunks: int | None) -> VideoPlan:
    from actors.scenes import parse_scenes, plan_scenes

    return plan_scenes(
        parse_scenes(prompt),
        fps=model.fps,
        chunk_frames=model.chunk_frames,
        default_chunks=max(1, model.num_latent_frames // model.chunk_frames),
        num_chunks=num_chunks,
    )


def draw_sheet(file: Path, plan: VideoPlan, model: ModelConfig, num_frames: int) -> bytes:
    from actors.scene_sheet import sheet_of_file

    return sheet_of_file(file, plan, chunk_frames=model.chunk_frames, fps=model.fps, num_frames=num_frames)


def make_video_pool(spec: VideoModelSpec, room: WorkerRoom | None) -> VideoPool:
    if room is None:
        from actors.local_video_pool import LocalVideoPool

        return LocalVideoPool(spec)
    from actors.video_pool import RayVideoPool

    return RayVideoPool(
        spec,
        num_workers=room.num_workers,
        num_cpus=room.num_cpus,
        num_gpus=room.num_gpus,
        chunk_timeout_s=room.chunk_timeout_s,
    )


def make_video_rewards(rewards: Sequence[RewardConfig], cluster: ClusterConfig | None) -> RewardPool:
    if cluster is None:
        from reward_servers.local_pool import LocalRewardPool

        return LocalRewardPool(rewards)
    from reward_servers.pool import ServeRewardPool
    from reward_servers.readiness import Patience

    return ServeRewardPool(
        rewards,
        client="videos",
        idle_timeout_s=cluster.reward_idle_timeout_s,
        patience=Patience.of(cluster),
    )


def pool_scorer(rewards: Sequence[RewardConfig], cluster: ClusterConfig | None) -> VideoScorer:
    from reward_servers.file_scoring import PoolScorer

    pool = make_video_rewards(rewards, cluster)
    if cluster is None:
        return PoolScorer(pool, keep=lambda array: array)
    import ray

    return PoolScorer(pool, keep=ray.put)


def door_scorer(url: str, token: str, rewards: Sequence[str]) -> VideoScorer:
    from reward_servers.file_scoring import DoorScorer

    return DoorScorer(url, token, rewards)


def make_roles(config: RunConfig) -> Roles:
    from actors.pool import RayRolloutPool
    from astrolabe_ray.run import Roles
    from astrolabe_ray.runtime.gallery import RayGallery
    from astrolabe_ray.runtime.object_store import RayBlobStore
    from learner.group import LearnerGroup
    from learner.spec import LearnerSpec
    from reward_servers.pool import ServeRewardPool
    from reward_servers.readiness import Patience

    return Roles(
        rollouts=RayRolloutPool(config),
        rewards=ServeRewardPool(
            config.rewards,
            keep_servers=config.cluster.keep_reward_servers,
            client=config.name,
            idle_timeout_s=config.cluster.reward_idle_timeout_s,
            patience=Patience.of(config.cluster),
        ),
        learner=LearnerGroup(
            LearnerSpec.of(config),
            RayBlobStore(),
            placement_timeout_s=config.cluster.placement_timeout_s,
            shared=Path(config.logging.log_dir),
        ),
        gallery=RayGallery(),
    )


def start_rewards(config: RunConfig) -> None:
    from reward_servers.app import server_specs
    from reward_servers.deploy import ensure, hold
    from reward_servers.readiness import Patience

    specs = server_specs(config.rewards, config.cluster.reward_idle_timeout_s)
    ensure(specs, Patience.of(config.cluster))
    hold(specs, "rewards up")


def stop_rewards(config: RunConfig) -> None:
    from reward_servers.app import server_specs
    from reward_servers.deploy import down, status

    wanted = tuple(spec.settings_name for spec in server_specs(config.rewards))
    down([server.name for server in status() if server.name.startswith(wanted)])  # also of earlier code


def running_rewards(rewards: Sequence[RewardConfig]) -> Collection[str]:
    from reward_servers.app import server_specs
    from reward_servers.deploy import status

    running = {server.name for server in status() if server.status == "RUNNING"}
    return [spec.scorer for spec in server_specs(rewards) if spec.app_name in running]


def reward_servers() -> Sequence[ServerStatus]:
    from reward_servers.deploy import status

    return status()


def scale_rewards(name: str, min_replicas: int, max_replicas: int) -> None:
    from reward_servers.deploy import scale

    scale(name, min_replicas, max_replicas)


def bench_rewards(name: str, seconds: float, in_flight: int, size: tuple[int, int, int]) -> BenchResult:
    from reward_servers.bench import bench

    return bench(name, seconds=seconds, in_flight=in_flight, size=size)


def open_door(config: RunConfig, options: DoorOptions) -> str:
    from reward_servers.door import DoorSpec, open_door
    from reward_servers.http_guard import digest_of

    idle_timeout_s = config.cluster.reward_idle_timeout_s
    return open_door(
        DoorSpec(config.rewards, options.host, options.port, digest_of(options.token), idle_timeout_s)
    )


def close_doors() -> None:
    from reward_servers.door import close_doors

    close_doors()


def doors() -> Sequence[DoorStatus]:
    from reward_servers.door import doors

    return doors()


WIRING = Wiring(
    reward_problems=reward_problems,
    plan_scenes=plan_scenes,
    draw_sheet=draw_sheet,
    make_video_pool=make_video_pool,
    make_video_rewards=make_video_rewards,
    pool_scorer=pool_scorer,
    door_scorer=door_scorer,
    make_roles=make_roles,
    start_rewards=start_rewards,
    stop_rewards=stop_rewards,
    running_rewards=running_rewards,
    reward_servers=reward_servers,
    scale_rewards=scale_rewards,
    bench_rewards=bench_rewards,
    open_door=open_door,
    close_doors=close_doors,
    doors=doors,
)

if __name__ == "__main__":
    main()
