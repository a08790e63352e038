"""A replica that is asked for what can't be judged says why, and goes on serving."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import DataFailure
from reward_servers.app import ServerSpec
from reward_servers.batch_scoring import ScoreRequest
from reward_servers.deploy import ensure, handle_of
from reward_servers.readiness import Patience
from tests.reward_replicas import replica_pids
from tests.served_tiny_hpsv3 import KEY
from tests.tiny_qwen import write_hpsv3

pytestmark = pytest.mark.system
GOOD = np.random.default_rng(0).integers(0, 256, (4, 3, 40, 56), dtype=np.uint8)
WITH_NAN = np.where(GOOD > 250, np.nan, GOOD / 255).astype(np.float32)
PROMPT = "two dogs on a beach"
REFUSED: dict[str, tuple[tuple[np.ndarray, ...], tuple[str, ...], str]] = {
    "wrong dtype, with NaN": ((WITH_NAN,), (PROMPT,), r"\('float32', 4, 3, 40, 56\).*needed is one uint8"),
    "colours last": ((GOOD.transpose(0, 2, 3, 1),), (PROMPT,), r"\('uint8', 4, 40, 56, 3\).*\[F, 3, H, W\]"),
    "one frame without its axis": ((GOOD[0],), (PROMPT,), r"\('uint8', 3, 40, 56\).*\[F, 3, H, W\]"),
    "no frames": ((GOOD[:0],), (PROMPT,), r"\('uint8', 0, 3, 40, 56\).*needed is one uint8"),
    "two shapes": ((GOOD, GOOD[:2]), (PROMPT, PROMPT), "2 arrays .*of one shape|2 arrays .*one uint8"),
    "a prompt too few": ((GOOD, GOOD), (PROMPT,), "2 arrays .* for 1 prompts"),
    "an empty prompt": ((GOOD,), ("  ",), "the prompt of video 0 is empty"),
    "a mark of the model": (
        (GOOD,),
        ("a dog <|Reward|> b",),
        r"contains <\|Reward\|>, which the reward model",
    ),
}


@pytest.fixture(scope="module")
def handle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = write_hpsv3(tmp_path_factory.mktemp("files")).folder
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    spec = ServerSpec.of(RewardConfig(key=KEY, options=f"files={Path(folder)}", num_cpus=0.1))
    ensure([spec], Patience(placement_timeout_s=60, load_timeout_s=60))
    found = handle_of(spec.app_name)
    yield found
    found.shutdown()
    serve.shutdown()
    ray.shutdown()


def asked(handle: Any, videos: tuple[np.ndarray, ...], prompts: tuple[str, ...]) -> Any:
    """The answer, not waited for."""
    return handle.score.remote(ScoreRequest("it", tuple(map(ray.put, videos)), prompts, "test"))


def test_what_can_not_be_judged_is_refused_by_name_and_the_replica_stays(handle: Any) -> None:
    """One bad request would end the runs of all who share the server, or take a 15 GB model down.

    A good request lies beside each bad one, so they meet in a batch.
    """
    (pid,) = replica_pids()
    expected = asked(handle, (GOOD,), (PROMPT,)).result(timeout_s=60)
    for videos, prompts, words in REFUSED.values():
        bad, good = asked(handle, videos, prompts), asked(handle, (GOOD,), (PROMPT,))
        with pytest.raises(DataFailure, match=words):
            bad.result(timeout_s=60)
        numbers = good.result(timeout_s=60)
        for name, value in expected.items():
            assert numbers[name] == pytest.approx(value, abs=5e-5)
    assert replica_pids() == {pid}
