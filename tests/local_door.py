"""The door of the reward servers on a free port of this machine, with scorers in this process behind it."""

from __future__ import annotations

import io
import json
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from astrolabe_ray.config.schema import RewardConfig
from reward_servers.desk import Desk, PoolOf
from reward_servers.http import make_app
from reward_servers.http_guard import digest_of
from reward_servers.http_thread import HttpThread
from reward_servers.local_pool import LocalRewardPool
from reward_servers.uploads import UploadLimits

TOKEN = "a token for tests"
KEYS = ("tiny_clip", "motion_quality", "image_quality")
RED = "a small red circle moves left on a black background"


@contextmanager
def local_door(
    pool_of: PoolOf = LocalRewardPool,
    *,
    keys: Sequence[str] = KEYS,
    token: str = TOKEN,
    max_requests: int = 16,
    max_held_bytes: int = 4 << 30,
    request_timeout_s: float = 300.0,
    **limits: Any,
) -> Iterator[str]:
    """Its URL. `limits`: fields of UploadLimits."""
    desk = Desk([RewardConfig(key=key) for key in keys], pool_of, keep=lambda array: array)
    app = make_app(
        desk,
        token_digest=digest_of(token),
        limits=replace(UploadLimits(), **limits),
        max_requests=max_requests,
        max_held_bytes=max_held_bytes,
        request_timeout_s=request_timeout_s,
    )
    server = HttpThread(app, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.stop()


@dataclass(frozen=True)
class Answer:
    """What came back. `body` is parsed if it is JSON."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> str | None:
        return self.body.get("error") if isinstance(self.body, dict) else None


def ask(
    url: str, data: bytes | None = None, token: str | None = TOKEN, headers: dict[str, str] | None = None
) -> Answer:
    """A request by the standard library, which knows nothing of our client."""
    request = urllib.request.Request(url, data, dict(headers or {}))
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return _answer(response)
    except urllib.error.HTTPError as error:
        return _answer(error)


def connected(url: str, timeout_s: float = 10) -> socket.socket:
    """A connection to the door over which nothing was said yet."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=timeout_s)


def head(*lines: str, token: str = TOKEN) -> bytes:
    """Of a request to score a form whose parts are marked by `x`."""
    first = ("POST /v1/scores HTTP/1.1", "Host: x", f"Authorization: Bearer {token}")
    kind = "Content-Type: multipart/form-data; boundary=x"
    return "\r\n".join([*first, kind, *lines, "", ""]).encode()


def post(url: str, file: bytes, prompt: str = RED, token: str | None = TOKEN, **fields: object) -> Answer:
    """Send a video to be scored."""
    body, kind = form(file, {"prompt": prompt, **fields})
    return ask(f"{url}/v1/scores", body, token, {"Content-Type": kind})


def form(file: bytes, fields: dict[str, object]) -> tuple[bytes, str]:
    """A multipart form as RFC 7578 has it, and its content type."""
    mark = uuid.uuid4().hex
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{mark}\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\n'.encode()
    return b"".join(
        [*parts, head, file, f"\r\n--{mark}--\r\n".encode()]
    ), f"multipart/form-data; boundary={mark}"


def npy(array: np.ndarray, **more: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **more)
    return file.getvalue()


def _answer(response: Any) -> Answer:
    content, headers = response.read(), {k.lower(): v for k, v in response.headers.items()}
    is_json = headers.get("content-type", "").startswith("application/json")
    return Answer(response.status, json.loads(content) if is_json else content.decode(), headers)
