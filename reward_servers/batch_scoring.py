"""From the requests that met in a batch to the numbers of each: fetched, checked, scored together."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import ObjectRef
from ray.exceptions import RayError

from astrolabe_ray.errors import AstrolabeError, DataFailure, InfraFailure, PayloadsLost
from reward_servers.scorers import Scorer
from reward_servers.scoring import Numbers, check_prompts, finite_numbers

FETCH_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class ScorerFault(InfraFailure):
    """A scorer raised what no scorer may; if it fails at the known video, too, its replica is replaced."""


@dataclass(frozen=True)
class ScoreRequest:
    """Some videos of one view with their prompts. The references are nested, so Serve passes them on
    unread, and a request that is turned away has moved no pixels."""

    request_id: str
    videos: tuple[ObjectRef, ...]  # uint8 [F, 3, H, W] each, of one shape
    prompts: tuple[str, ...]
    client: str = ""  # who asks; a server is fair between clients


async def fetch(request: ScoreRequest) -> np.ndarray:
    """The request's videos as uint8 [B, F, 3, H, W]. Raises PayloadsLost when they can't be read."""
    try:
        videos = await asyncio.wait_for(_arrays(request.videos), FETCH_TIMEOUT_S)
    except (RayError, asyncio.TimeoutError) as error:
        raise PayloadsLost(f"the videos of request {request.request_id} are lost: {error!r}") from error
    check_videos(videos, request)
    return np.stack(videos)


async def _arrays(references: Sequence[ObjectRef]) -> list[np.ndarray]:
    """A coroutine, because a gathered future that is cancelled complains that nobody saw it end."""
    return await asyncio.gather(*(asyncio.wrap_future(each.future()) for each in references))


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
    scorer: Scorer,
    fetched: Sequence[np.ndarray | BaseException],
    requests: Sequence[ScoreRequest],
    complaint: Callable[[], str],
) -> list[Numbers | BaseException]:
    """Scores of each request, or what went wrong with it alone: ScorerFault for a scorer that has broken.

    Requests of one shape go through the scorer as one batch. When a request fails by itself, `complaint` says
    what is wrong with the scorer, too; empty: nothing, so it is the request's own fault.
    """
    results: list[Numbers | BaseException] = [DataFailure("not scored")] * len(requests)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, videos in enumerate(fetched):
        if isinstance(videos, BaseException):
            results[i] = videos
        else:
            by_shape.setdefault(videos.shape[1:], []).append(i)
    for members in by_shape.values():
        alike = [fetched[i] for i in members], [requests[i] for i in members]
        for i, result in zip(members, _apart(scorer, *alike, complaint), strict=True):
            results[i] = result
    return results


def _apart(
    scorer: Scorer, videos: Sequence[Any], requests: Sequence[ScoreRequest], complaint: Callable[[], str]
) -> Sequence[Numbers | AstrolabeError]:
    """Requests of one shape. A batch that the scorer refuses or fails at is halved until only the guilty
    requests fail: of many, one costs two forwards for each halving."""
    outcome = _tried(scorer, videos, requests)
    if not isinstance(outcome, AstrolabeError):
        return outcome
    if isinstance(outcome, (DataFailure, ScorerFault)) and len(requests) > 1:
        half = len(requests) // 2
        return [
            *_apart(scorer, videos[:half], requests[:half], complaint),
            *_apart(scorer, videos[half:], requests[half:], complaint),
        ]
    if isinstance(outcome, ScorerFault):
        outcome = _blamed(outcome, complaint())
    return [outcome] * len(requests)


def _blamed(failure: ScorerFault, complaint: str) -> AstrolabeError:
    """The failure of a lonely request, as that of the scorer or as that of the request.

    A run that is told of an InfraFailure would take a request that no replica can score from one to the next.
    """
    if complaint:
        return ScorerFault(f"{failure}; at the known video: {complaint}")
    return DataFailure(f"{failure}, and scores other videos as before")


def _tried(
    scorer: Scorer, videos: Sequence[Any], requests: Sequence[ScoreRequest]
) -> Sequence[Numbers] | AstrolabeError:
    """`scored`, or why not. A scorer is anybody's code: what it may not raise becomes a ScorerFault, as text,
    since the exception would hold the memory of its forward."""
    try:
        return scored(scorer, videos, requests)
    except AstrolabeError as failure:
        return failure
    except Exception as error:  # the border to code of others
        name = type(scorer).__name__
        logger.error("%s failed at %d requests\n%s", name, len(requests), traceback.format_exc())
        return ScorerFault(f"{name} failed at request {requests[0].request_id} with {error!r}")


def scored(scorer: Scorer, videos: Sequence[Any], requests: Sequence[ScoreRequest]) -> list[Numbers]:
    """Numbers of each request from one forward. Raises DataFailure for one that is not finite."""
    prompts = [prompt for request in requests for prompt in request.prompts]
    numbers = finite_numbers(scorer, np.concatenate(videos), prompts)
    ends = np.cumsum([len(request.prompts) for request in requests])[:-1]
    parts = {name: np.split(column, ends) for name, column in numbers.items()}
    return [{name: part[i].tolist() for name, part in parts.items()} for i in range(len(requests))]
