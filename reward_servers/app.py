"""One scorer behind Ray Serve: batches requests of all runs that share it.

Produces: scores. Waits for: requests. Bounded by: max_ongoing_requests and max_queued_requests, past
which callers get a back-pressure error and slow down.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from ray import ObjectRef, serve
from ray.exceptions import RayError

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import DataFailure, PayloadsLost
from reward_servers.identity import made_of
from reward_servers.scorers import Scorer, scorer_class

FETCH_TIMEOUT_S = 60.0
MAX_ONGOING_REQUESTS = 32
MAX_QUEUED_REQUESTS = 256
BATCH_WAIT_S = 0.02
STUCK_AFTER_S = 300.0


@dataclass(frozen=True)
class ServerSpec:
    """What makes two reward servers the same: these fields go into the name, `code` behind the others."""

    key: str
    min_replicas: int
    max_replicas: int
    num_cpus: float
    num_gpus: float
    max_batch_size: int
    code: str  # digest of the scorer's source and weights

    @classmethod
    def of(cls, reward: RewardConfig) -> ServerSpec:
        settings = [name for name in cls.__dataclass_fields__ if name != "code"]
        return cls(**{name: getattr(reward, name) for name in settings}, code=made_of(reward.key))

    @property
    def settings_name(self) -> str:
        """What the names of these servers begin with, whatever code they run."""
        settings = {name: value for name, value in asdict(self).items() if name != "code"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"reward-{self.key}-{digest[:8]}-"

    @property
    def app_name(self) -> str:
        """Example: `reward-tiny_clip-1a2b3c4d-5e6f7a8b`."""
        return self.settings_name + self.code[:8]


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
        self._scorer: Scorer = scorer_class(spec.key)()
        self._busy_since: float | None = None
        self._score_batch.set_max_batch_size(spec.max_batch_size)  # type: ignore[attr-defined]

    async def score(self, request: ScoreRequest) -> list[float]:
        """A finite score per video. Raises DataFailure, PayloadsLost."""
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
    async def _score_batch(self, requests: list[ScoreRequest]) -> list[list[float] | BaseException]:
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


def _is_video(shape: tuple[object, ...]) -> bool:
    return len(shape) == 5 and shape[0] == "uint8" and shape[2] == 3 and shape[1] != 0


def score_together(
    scorer: Scorer, fetched: Sequence[np.ndarray | BaseException], requests: Sequence[ScoreRequest]
) -> list[list[float] | BaseException]:
    """Scores of each request, or what went wrong with it alone.

    Requests of one shape go through the scorer as one batch. When the scorer refuses the batch, each
    request is scored by itself, so that only the guilty one fails.
    """
    results: list[list[float] | BaseException] = [DataFailure("not scored")] * len(requests)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, videos in enumerate(fetched):
        if isinstance(videos, BaseException):
            results[i] = videos
        else:
            by_shape.setdefault(videos.shape[1:], []).append(i)
    for members in by_shape.values():
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


def scored(scorer: Scorer, videos: Sequence[Any], requests: Sequence[ScoreRequest]) -> list[list[float]]:
    """Scores of each request from one forward. Raises DataFailure for a score that is not finite."""
    prompts = [prompt for request in requests for prompt in request.prompts]
    flat = scorer.score(np.concatenate(videos), prompts)
    for score, prompt in zip(flat, prompts, strict=True):
        if not np.isfinite(score):
            raise DataFailure(f"{type(scorer).__name__} gave {score} to the video of '{prompt}'")
    ends = np.cumsum([len(request.prompts) for request in requests])[:-1]
    return [part.tolist() for part in np.split(flat, ends)]


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
