"""One scorer behind Ray Serve: batches requests of all runs that share it.

Produces: scores. Waits for: requests. Bounded by: max_ongoing_requests and max_queued_requests, past
which callers get a back-pressure error and slow down.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ray import ObjectRef, serve
from ray.exceptions import RayError

from astrolabe_ray.config.plan import servers
from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import scorer_name
from astrolabe_ray.errors import DataFailure, PayloadsLost
from reward_servers.identity import files_of, made_of
from reward_servers.scorers import Scorer, ScorerSetup, card_of, load_scorer, setup_of
from reward_servers.scoring import Numbers, check_prompts, finite_numbers

FETCH_TIMEOUT_S = 60.0
MAX_ONGOING_REQUESTS = 32
MAX_QUEUED_REQUESTS = 256
BATCH_WAIT_S = 0.02
STUCK_AFTER_S = 300.0


@dataclass(frozen=True)
class ServerSpec:
    """What makes two reward servers the same: these fields go into the name, `code` behind the others."""

    scorer: str
    min_replicas: int
    max_replicas: int
    num_cpus: float
    num_gpus: float
    max_batch_size: int
    frames_per_forward: int
    folder: str  # absolute; empty for a scorer without files
    options: tuple[tuple[str, str], ...]
    code: str  # digest of the scorer's source and files

    @classmethod
    def of(cls, reward: RewardConfig) -> ServerSpec:
        """Raises ConfigError for an unknown reward key or option."""
        card, setup = card_of(reward.key), setup_of(reward)
        has_files = bool(card.files or card.file_options)
        return cls(
            scorer=scorer_name(reward.key),
            min_replicas=reward.min_replicas,
            max_replicas=reward.max_replicas,
            num_cpus=reward.num_cpus,
            num_gpus=reward.num_gpus,
            max_batch_size=reward.max_batch_size,
            frames_per_forward=reward.frames_per_forward,
            folder=str(setup.folder) if has_files else "",
            options=tuple(sorted(setup.options.items())),
            code=made_of(scorer_name(reward.key), files_of(card, setup)),
        )

    @property
    def setup(self) -> ScorerSetup:
        device = "cuda" if self.num_gpus else "cpu"
        return ScorerSetup(Path(self.folder), device, self.frames_per_forward, dict(self.options))

    @property
    def settings_name(self) -> str:
        """What the names of these servers begin with, whatever code they run."""
        settings = {name: value for name, value in asdict(self).items() if name != "code"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"reward-{re.sub('[^A-Za-z0-9_]', '-', self.scorer)}-{digest[:8]}-"

    @property
    def app_name(self) -> str:
        """Example: `reward-tiny_clip-1a2b3c4d-5e6f7a8b`."""
        return self.settings_name + self.code[:8]


def server_specs(rewards: Sequence[RewardConfig]) -> list[ServerSpec]:
    """A server for each scorer of `rewards`, in their order. Raises ConfigError as `ServerSpec.of` does."""
    return [ServerSpec.of(reward) for reward in servers(rewards).values()]


@dataclass(frozen=True)
class ScoreRequest:
    """Some videos of one view with their prompts. The references are nested, so Serve passes them on
    unread, and a request that is turned away has moved no pixels."""

    request_id: str
    videos: tuple[ObjectRef, ...]  # uint8 [F, 3, H, W] each, of one shape
    prompts: tuple[str, ...]


class RewardServer:
    """A replica: loads its scorer, proves that it scores, then serves batches."""

    def __init__(self, spec: ServerSpec) -> None:
        cv2.setNumThreads(1)
        torch.set_num_threads(max(1, int(spec.num_cpus)))
        self._scorer: Scorer = load_scorer(spec.scorer, spec.setup)
        self._busy_since: float | None = None
        self._score_batch.set_max_batch_size(spec.max_batch_size)  # type: ignore[attr-defined]

    async def score(self, request: ScoreRequest) -> Numbers:
        """Finite numbers by name, one per video. Raises DataFailure, PayloadsLost."""
        result = await self._score_batch(request)  # type: ignore[call-arg, arg-type]
        if isinstance(result, BaseException):
            raise result
        return result

    def check_health(self) -> None:
        """Serve replaces a replica whose scorer has been at one batch for far too long."""
        if self._busy_since is not None and time.monotonic() - self._busy_since > STUCK_AFTER_S:
            raise RuntimeError(f"the scorer has been busy with one batch for over {STUCK_AFTER_S:g} s")

    @serve.batch(
        max_batch_size=16,
        batch_wait_timeout_s=BATCH_WAIT_S,
        batch_size_fn=lambda requests: sum(len(request.videos) for request in requests),
    )
    async def _score_batch(self, requests: list[ScoreRequest]) -> list[Numbers | BaseException]:
        """One forward for several requests. Fetches in parallel, scores off the event loop."""
        fetched = await asyncio.gather(*(fetch(request) for request in requests), return_exceptions=True)
        self._busy_since = time.monotonic()
        try:
            return await asyncio.to_thread(score_together, self._scorer, fetched, requests)
        finally:
            self._busy_since = None


async def fetch(request: ScoreRequest) -> np.ndarray:
    """The request's videos as uint8 [B, F, 3, H, W]. Raises PayloadsLost when they can't be read."""
    waiting = [asyncio.wrap_future(ref.future()) for ref in request.videos]
    try:
        videos = await asyncio.wait_for(asyncio.gather(*waiting), FETCH_TIMEOUT_S)
    except (RayError, asyncio.TimeoutError) as error:
        raise PayloadsLost(f"the videos of request {request.request_id} are lost: {error!r}") from error
    check_videos(videos, request)
    return np.stack(videos)


def check_videos(videos: Sequence[np.ndarray], request: ScoreRequest) -> None:
    """Raises DataFailure for anything but uint8 [F, 3, H, W] videos of one shape, one per prompt."""
    shapes = {(video.dtype.name, *video.shape) for video in videos}
    if len(shapes) != 1 or len(videos) != len(request.prompts) or not _is_video(next(iter(shapes))):
        raise DataFailure(
            f"request {request.request_id} brings {len(videos)} arrays {sorted(shapes)} for "
            f"{len(request.prompts)} prompts; needed is one uint8 [F, 3, H, W] video per prompt."
        )
    check_prompts(request.prompts)


def _is_video(shape: tuple[object, ...]) -> bool:
    return len(shape) == 5 and shape[0] == "uint8" and shape[2] == 3 and 0 not in shape[1:]


def score_together(
    scorer: Scorer, fetched: Sequence[np.ndarray | BaseException], requests: Sequence[ScoreRequest]
) -> list[Numbers | BaseException]:
    """Scores of each request, or what went wrong with it alone.

    Requests of one shape go through the scorer as one batch. When the scorer refuses the batch, each
    request is scored by itself, so that only the guilty one fails.
    """
    results: list[Numbers | BaseException] = [DataFailure("not scored")] * len(requests)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, videos in enumerate(fetched):
        if isinstance(videos, BaseException):
            results[i] = videos
        else:
            by_shape.setdefault(videos.shape[1:], []).append(i)
    for members in by_shape.values():
        scores: Sequence[Numbers | BaseException]
        try:
            scores = scored(scorer, [fetched[i] for i in members], [requests[i] for i in members])
        except DataFailure as failure:
            if len(members) > 1:
                scores = [score_together(scorer, [fetched[i]], [requests[i]])[0] for i in members]
            else:
                scores = [failure]
        for i, result in zip(members, scores, strict=True):
            results[i] = result
    return results


def scored(scorer: Scorer, videos: Sequence[Any], requests: Sequence[ScoreRequest]) -> list[Numbers]:
    """Numbers of each request from one forward. Raises DataFailure for one that is not finite."""
    prompts = [prompt for request in requests for prompt in request.prompts]
    numbers = finite_numbers(scorer, np.concatenate(videos), prompts)
    ends = np.cumsum([len(request.prompts) for request in requests])[:-1]
    parts = {name: np.split(column, ends) for name, column in numbers.items()}
    return [{name: part[i].tolist() for name, part in parts.items()} for i in range(len(requests))]


def application(spec: ServerSpec) -> serve.Application:
    """The Serve application of a reward server, ready to run."""
    deployment: Any = serve.deployment(
        RewardServer,
        name="RewardServer",
        ray_actor_options={"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus},
        autoscaling_config={
            "min_replicas": spec.min_replicas,
            "max_replicas": spec.max_replicas,
            "target_ongoing_requests": 4,
            "look_back_period_s": 10,
            "metrics_interval_s": 2,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        },
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        health_check_timeout_s=STUCK_AFTER_S,
        max_constructor_retry_count=3,
    )
    return deployment.bind(spec)
