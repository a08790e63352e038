"""UnifiedReward against an endpoint on this machine that speaks as the real ones do."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest

from astrolabe_ray.errors import DataFailure, InfraFailure
from reward_servers.scorers import ScorerSetup
from reward_servers.unifiedreward_scorer import UnifiedRewardScorer, score_in

pytest.importorskip("openai")


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], tuple[int, str]]) -> Iterator[str]:
    """Gives its address. `answer` gets a request's body and gives a status and what the model writes."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            content = json.dumps(body if status == 200 else {"error": {"message": text}}).encode()
            self.send_response(status if self.path == "/v1/chat/completions" else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def scorer(address: str) -> UnifiedRewardScorer:
    return UnifiedRewardScorer(ScorerSetup(options={"endpoint": address, "model": "judge"}))


def films(*levels: int) -> np.ndarray:
    """A video of two equal frames for each red level."""
    videos = np.zeros((len(levels), 2, 3, 8, 8), np.uint8)
    videos[:, :, 0] = np.array(levels)[:, None, None, None]
    return videos


def red_level(body: dict[str, Any]) -> int:
    address = body["messages"][0]["content"][0]["image_url"]["url"]
    png = np.frombuffer(base64.b64decode(address.removeprefix("data:image/png;base64,")), np.uint8)
    return int(cv2.imdecode(png, cv2.IMREAD_COLOR)[0, 0, 2])


def test_each_frame_is_asked_about_with_its_caption() -> None:
    """Answers come in any order; swapped, or with red for blue, they would score other videos."""
    asked: list[tuple[int, str, str]] = []

    def answer(body: dict[str, Any]) -> tuple[int, str]:
        asked.append((red_level(body), body["messages"][0]["content"][1]["text"], body["model"]))
        return 200, f"It is fine.\n**Final Score: {red_level(body) / 50}**"

    with endpoint(answer) as address:
        scores = scorer(address).score(films(50, 200), ["a kite {x}", "rain"])["unifiedreward"]
    assert scores == pytest.approx([0.2, 0.8])
    assert len(asked) == 4 and {model for *_, model in asked} == {"judge"}
    assert all(("a kite {x}" in text) == (level == 50) for level, text, _ in asked)


def test_an_answer_without_a_score_is_a_failure_and_not_a_zero() -> None:
    """A zero would teach the model to make videos that the judge can't read."""
    with (
        endpoint(lambda _: (200, "I can't say.")) as address,
        pytest.raises(DataFailure, match="I can't say"),
    ):
        scorer(address).score(films(1), ["a kite"])
    for text in ("Final Score: 7", "Final Score: good", ""):
        with pytest.raises(DataFailure, match="no score from 0 to 5"):
            score_in(text, "a kite")


def test_what_the_endpoint_refuses_is_told_from_what_it_can_not_do_now() -> None:
    """The one is dropped, the other is tried again."""
    with endpoint(lambda _: (400, "bad picture")) as address, pytest.raises(DataFailure, match="bad picture"):
        scorer(address).score(films(1), ["a kite"])
    with endpoint(lambda _: (503, "busy")) as address, pytest.raises(InfraFailure, match="busy"):
        scorer(address).score(films(1), ["a kite"])
    with pytest.raises(InfraFailure, match="did not answer"):
        scorer(address).score(films(1), ["a kite"])
