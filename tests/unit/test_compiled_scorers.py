"""Scorers through torch.compile: the same scores, or a clear no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import ConfigError
from reward_servers.compiled import compile_if_asked
from reward_servers.hpsv3_scorer import HPSv3Scorer
from reward_servers.scorers import ScorerSetup, load_scorer, reward_problems, setup_of
from tests.tiny_qwen import TEXTS, write_hpsv3
from tests.tiny_rewards import BUDGET

ASKED = ScorerSetup(options={"compile": "yes"})


def test_a_network_is_compiled_only_when_its_scorer_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling by default costs a minute at each start; an option that does nothing helps nobody."""
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: lambda x: forward(x) + 1)
    x = torch.ones(2)
    for reward, expected in (("", 1.0), ("compile=no", 1.0), ("compile=yes", 2.0)):
        network = nn.Identity()
        compile_if_asked(network, setup_of(RewardConfig(key="tiny_clip", options=reward)))
        assert network(x).tolist() == [expected, expected]


def test_where_nothing_can_be_compiled_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of a compiler's traceback in the log of a replica that does not start."""

    def fails(graph: object, inputs: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, *, dynamic: compiled(forward, backend=fails))
    network = nn.Linear(2, 2)
    compile_if_asked(network, ASKED)
    with pytest.raises(
        ConfigError, match=r"does not work here: .*No working C\+\+ compiler.*leave the option"
    ):
        network(torch.ones(2))


@pytest.mark.parametrize(
    ("key", "options", "words"),
    [
        ("motion_quality", "compile=yes", "'compile=yes' is no option of the scorer motion_quality"),
        ("tiny_clip", "compile=fast", "compile=fast of tiny_clip must be yes or no"),
    ],
)
def test_what_can_not_be_compiled_says_so_before_a_server_starts(key: str, options: str, words: str) -> None:
    """A wish that is passed over in silence."""
    ((option, line),) = reward_problems(RewardConfig(key=key, options=options))
    assert option == "options" and words in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_clip", "hpsv3"])
def test_compiled_scores_are_the_same(tmp_path: Path, name: str) -> None:
    """With batches of sizes and prompts of lengths that it was not compiled with."""
    if name == "tiny_clip":
        plain, fast = load_scorer(name, ScorerSetup()), load_scorer(name, ASKED)
        shape, prompt = (4, 3, 32, 32), "a small red circle moves left on a black background"
    else:
        write_hpsv3(tmp_path)
        plain, fast = (
            HPSv3Scorer(ScorerSetup(tmp_path, options=options), texts=TEXTS, num_pixels=BUDGET)
            for options in ({}, ASKED.options)
        )
        shape, prompt = (4, 3, 40, 56), "two dogs on a beach"
    for count in (1, 3, 8):
        videos = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
        expected = plain.score(videos, [prompt] * count)
        for number, column in fast.score(videos, [prompt] * count).items():
            np.testing.assert_allclose(column, expected[number], atol=5e-5, err_msg=number)
