"""The door of the reward servers for those who are not on the cluster: HTTP, JSON, a bearer token.

Routes below /v1/ need the token; the page, the list of routes and /health are for everybody and say nothing
about anybody's videos. Produces: scores. Waits for: reward servers. Bounded by: `Guard`, `ByteBudget`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Request, Security, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from astrolabe_ray.errors import DataFailure, InfraFailure
from reward_servers.byte_budget import RETRY_AFTER_S, ByteBudget, Take
from reward_servers.desk import Desk, check_prompt, reason_of
from reward_servers.http_guard import FORM_BYTES, Guard, problem
from reward_servers.messages import Point, ServedReward
from reward_servers.mp4_frames import Decoders
from reward_servers.route_list import route_list
from reward_servers.uploads import Refused, UploadLimits, kind_of, read_npy

PAGE = Path(__file__).with_name("door_page.html")
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src blob:; "
    "img-src data:; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
STATUS = {"too_large": 413, "unknown_format": 415, "unknown_reward": 404}
"""Of refusals; all others are 422."""
STATUS_CODES = {
    400: "malformed",
    404: "not_found",
    405: "not_allowed",
    408: "too_slow",
    413: "too_large",
    503: "busy",
}


class ScoreAnswer(BaseModel):
    """Scores of one video."""

    scores: dict[str, float]
    curves: dict[str, list[Point]] = {}
    num_frames: int
    height: int
    width: int
    seconds: float


class RewardsAnswer(BaseModel):
    """What is served, and what may be sent."""

    rewards: list[ServedReward]
    limits: UploadLimits


class Problem(BaseModel):
    """Every error. `error` is for programs, `message` for people."""

    error: str
    message: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        401: "no token",
        403: "another token",
        404: "a reward that is not served",
        413: "too many bytes, frames or pixels",
        415: "neither mp4 nor npy",
        422: "a file or a prompt that can't be scored; `error` says why",
        503: "too many requests, or reward servers that do not answer: try again after Retry-After seconds",
    }.items()
}


def make_app(
    desk: Desk,
    *,
    token_digest: bytes,
    limits: UploadLimits,
    max_requests: int = 16,
    max_held_bytes: int = 4 << 30,
    num_decoders: int = 2,
    request_timeout_s: float = 300.0,
) -> ASGIApp:
    """The ASGI application. `token_digest`: of the token that all callers share. `max_held_bytes`: of the
    bodies and frames of all requests together; those of a single one must fit. `request_timeout_s`: from the
    whole upload to the answer; servers that are busy for longer are a 503."""
    assert max_held_bytes >= limits.max_bytes + FORM_BYTES + limits.max_video_bytes, "some would never fit"
    budget = ByteBudget(max_held_bytes)
    app = FastAPI(
        lifespan=_opened(desk),
        title="Reward servers",
        description="Scores of videos. Send an mp4 file or a uint8 npy array with the prompt that it shows.",
        version="1",
        docs_url=None,  # that page is fetched from elsewhere
        redoc_url=None,
    )
    _add_answers_to_errors(app)
    _add_pages(app)
    _add_scoring(app, desk, limits, Decoders(limits, num_decoders), budget, request_timeout_s)
    return Guard(
        app,
        token_digest=token_digest,
        max_bytes=limits.max_bytes,
        max_requests=max_requests,
        budget=budget,
    )


def _opened(desk: Desk) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """While the application runs, so do the desk's pools; nobody waits for them before they ask."""

    @asynccontextmanager
    async def opened(_: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(desk.open())
        yield
        opening.cancel()

    return opened


def _add_pages(app: FastAPI) -> None:
    page, headers = PAGE.read_text(), {"Content-Security-Policy": PAGE_POLICY}

    @app.get("/", include_in_schema=False)
    async def start_page() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(route_list(app.openapi()), headers=headers)

    @app.get("/health", summary="Whether the door answers")
    async def health() -> dict[str, str]:
        return {"status": "ok"}


def _add_scoring(
    app: FastAPI,
    desk: Desk,
    limits: UploadLimits,
    decoders: Decoders,
    budget: ByteBudget,
    timeout_s: float,
) -> None:
    token = [Security(HTTPBearer(auto_error=False))]  # for the list of routes; `Guard` has checked it

    @app.get("/v1/rewards", dependencies=token, responses=PROBLEMS, summary="Rewards that are served")
    async def rewards() -> RewardsAnswer:
        return RewardsAnswer(rewards=desk.served(), limits=limits)

    @app.post("/v1/scores", dependencies=token, responses=PROBLEMS, summary="Score a video")
    async def scores(
        video: Annotated[UploadFile, File(description="mp4, or npy: uint8 [F, 3, H, W] or [F, H, W, 3]")],
        prompt: Annotated[str, Form(description="What the video is meant to show")] = "",
        rewards: Annotated[str, Form(description="Keys with commas between them; none: all")] = "",
        points: Annotated[int, Form(description="Places along the video for curves; 0: no curves")] = 0,
    ) -> ScoreAnswer:
        began = time.monotonic()
        keys = desk.keys([key for key in (part.strip() for part in rewards.split(",")) if key])
        check_prompt(prompt, limits.max_prompt_chars)
        if not 0 <= points <= limits.max_windows:
            raise Refused("malformed", f"points is {points}; it must be 0 to {limits.max_windows}")

        async def answer(take: Take) -> ScoreAnswer:
            frames = await _decoded(await video.read(), limits, decoders, take)
            found = await desk.score(frames, prompt, keys)
            curves = await desk.curves(frames, prompt, keys, points) if points else {}
            return ScoreAnswer(
                scores=found,
                curves=curves,
                num_frames=len(frames),
                height=frames.shape[2],
                width=frames.shape[3],
                seconds=round(time.monotonic() - began, 3),
            )

        try:
            with budget.share() as take:
                return await asyncio.wait_for(answer(take), timeout_s)
        except asyncio.TimeoutError:
            raise InfraFailure(f"no score after {timeout_s:g} s; the reward servers are busy") from None


async def _decoded(content: bytes, limits: UploadLimits, decoders: Decoders, take: Take) -> np.ndarray:
    if kind_of(content) == "mp4":
        return await decoders.frames(content, take)
    take(len(content))  # no array is larger than the file that it is read from
    return await asyncio.to_thread(read_npy, content, limits)


def _add_answers_to_errors(app: FastAPI) -> None:
    """Every error as JSON. Faults of the program stay 500, and their traceback goes to the log."""

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return problem(500, "fault", f"a fault of the door, {type(error).__name__}; its log says where")

    @app.exception_handler(DataFailure)
    async def refused(_: Request, failure: DataFailure) -> JSONResponse:
        reason = reason_of(failure)
        return problem(STATUS.get(reason.code, 422), reason.code, str(reason))

    @app.exception_handler(InfraFailure)
    async def unavailable(_: Request, failure: InfraFailure) -> JSONResponse:
        return problem(503, "unavailable", str(failure), {"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{detail['loc'][-1]}: {detail['msg']}" for detail in error.errors()]
        return problem(422, "malformed", "; ".join(lines))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        code = STATUS_CODES.get(error.status_code, "failed")
        return problem(error.status_code, code, str(error.detail), dict(error.headers or {}))
