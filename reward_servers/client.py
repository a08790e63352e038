"""The door of the reward servers from a program, on any machine: needs neither Ray nor torch.

    with ScoringClient("http://gpu-head:8100", token) as client:
        client.score(Path("circle.mp4"), "a red circle").scores

A client is used by one thread at a time; several may ask at once with a client each.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure
from reward_servers.messages import Point, ScoredVideo, ServedReward

FIRST_BACKOFF_S = 0.5
MAX_WAIT_S = 30.0
"""Between two attempts, whatever the server asks for."""

AGAIN = (408, 429, 502, 503, 504)
"""Answers that may be others a little later."""

Video = Path | bytes | np.ndarray
"""A file, what is in one, or frames uint8 [F, 3, H, W] or [F, H, W, 3]."""


class ScoringClient:
    """Asks one door. Scoring changes nothing, so what infrastructure broke is asked again."""

    def __init__(self, url: str, token: str, *, timeout_s: float = 600.0, max_attempts: int = 5) -> None:
        """`timeout_s`: for one attempt, the scoring included. Raises ConfigError for a URL that is none."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"'{url}' is no URL of a door; write http://HOST:PORT")
        self._url, self._timeout_s, self._max_attempts = url.rstrip("/"), timeout_s, max_attempts
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {token}"}, timeout=httpx.Timeout(timeout_s, connect=10.0)
        )

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def rewards(self) -> list[ServedReward]:
        """What can be asked for."""
        return [ServedReward(**reward) for reward in self._ask("GET", "/v1/rewards")["rewards"]]

    def score(
        self, video: Video, prompt: str, rewards: Sequence[str] = (), *, num_points: int = 0
    ) -> ScoredVideo:
        """Scores of `rewards`, or of all that are served; with `num_points` also curves along the video.

        Raises DataFailure for a video or a prompt that can't be scored, ConfigError for a wrong token, URL
        or reward, and InfraFailure when nothing answers after `max_attempts`.
        """
        fields = {"prompt": prompt, "rewards": ",".join(rewards), "points": str(num_points)}
        answer = self._ask("POST", "/v1/scores", data=fields, files={"video": ("video", _content(video))})
        curves = {key: [Point(**point) for point in points] for key, points in answer["curves"].items()}
        return ScoredVideo(answer["scores"], curves)

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        backoff_s, reason = FIRST_BACKOFF_S, ""
        for attempt in range(1, self._max_attempts + 1):
            wait_s = backoff_s
            try:
                response = self._http.request(method, self._url + path, **body)
            except httpx.InvalidURL as error:
                raise ConfigError(f"'{self._url}' is no URL of a door: {error}") from None
            except httpx.ReadTimeout:
                raise InfraFailure(
                    f"{self._url} took the request and did not answer in {self._timeout_s:g} s"
                ) from None  # it would not be faster the next time, and is perhaps still at work
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in AGAIN:
                    return _checked(response, self._url)
                reason = _message(response)
                wait_s = max(wait_s, _seconds(response.headers))
            if attempt < self._max_attempts:
                time.sleep(min(wait_s, MAX_WAIT_S))
                backoff_s *= 2
        raise InfraFailure(f"{self._url} did not answer in {self._max_attempts} attempts: {reason}")


def _content(video: Video) -> bytes:
    """Raises DataFailure for a file that can't be read."""
    if isinstance(video, bytes):
        return video
    if isinstance(video, Path):
        try:
            return video.read_bytes()
        except OSError as reason:
            raise DataFailure(f"can't read {video}: {reason.strerror}") from None
    file = io.BytesIO()
    np.save(file, video, allow_pickle=False)
    return file.getvalue()


def _checked(response: httpx.Response, url: str) -> Any:
    """The JSON of a good answer. Raises the error of this project that a bad one stands for."""
    status = response.status_code
    if status == 200:
        try:
            return response.json()
        except ValueError:
            raise ConfigError(f"{url} answers without JSON; is this the door of reward servers?") from None
    message = _message(response)
    if status in (401, 403, 404):
        raise ConfigError(f"{url}: {message}")
    if 400 <= status < 500:
        raise DataFailure(message)
    raise InfraFailure(f"{url} failed with {status}: {message}")


def _message(response: httpx.Response) -> str:
    """What the door says, or what somebody between us and it says."""
    if response.headers.get("content-type", "").startswith("application/json"):
        with contextlib.suppress(ValueError):
            body = response.json()
            if isinstance(body, dict) and "message" in body:
                return str(body["message"])
    return f"{response.status_code} {response.reason_phrase}; is this the door of reward servers?"


def _seconds(headers: Mapping[str, str]) -> float:
    """Of Retry-After, which may also be a date; that counts as none."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0
