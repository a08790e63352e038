"""The guide in docs/rewards.md, followed word by word: a reward in its own file, no other file touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_reference import script

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text()
TINY = f"{ROOT / 'configs' / 'nft_tiny.py'}:tiny_sprites"
SCORE_TWO_VIDEOS = """
import asyncio, numpy as np
from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.types import PolicyVersion, Rollout
from reward_servers.local_pool import LocalRewardPool

pool = LocalRewardPool([RewardConfig(key=KEY, options="gain=2")])
assert [view.num_frames for view in pool.views] == [4]
videos = np.zeros((2, 4, 3, 8, 8), np.uint8)
videos[0, :, 0], videos[1, :, 1:] = 255, 255
rollouts = [Rollout("g", i, "a kite", i, PolicyVersion(0), "a", None, (v,)) for i, v in enumerate(videos)]
print([round(score.values[KEY], 2) for score in asyncio.run(pool.score(rollouts))])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the guide's file in it, and a package that offers it as an entry point."""
    (source,) = re.findall(r"```python\n(# my_rewards\.py\n.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(source)
    package = tmp_path / "my_rewards-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rewards\nVersion: 1.0\n")
    (entry,) = re.findall(r"`(redness = \"[^`]*\")`", PAGE)
    name, _, place = entry.partition(" = ")
    value = place.strip('"')
    (package / "entry_points.txt").write_text(f"[astrolabe_ray.scorers]\n{name} = {value}\n")
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def dry_run(folder: Path, key: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    arguments = ["train", "--config", TINY, f"--config.rewards.0.key={key}", *overrides, "--dry-run"]
    return python(folder, str(ROOT / "launch.py"), *arguments)


@pytest.mark.parametrize("key", ["my_rewards:Redness", "my_rewards:Redness/red", "redness"])
def test_the_guides_reward_is_planned_and_scores(folder: Path, key: str) -> None:
    """A guide that does not work costs everyone who follows it. Red is 255 of 256, twice for the gain."""
    done = dry_run(folder, key, "--config.rewards.0.options=gain=2")
    assert done.returncode == 0, done.stderr
    assert f"reward server {key.partition('/')[0]}" in done.stdout
    assert "Everything is there. Nothing was started." in done.stdout
    scored = python(folder, "-c", f"KEY = {key!r}\n{SCORE_TWO_VIDEOS}")
    assert scored.stdout.strip() == "[1.99, 0.0]", scored.stdout + scored.stderr


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "my_rewards:Rednes",
            "scorer 'my_rewards:Rednes' can't be imported: module 'my_rewards' has no attribute",
        ),
        ("no_such:Thing", "can't be imported: No module named 'no_such'"),
        ("my_rewards:FrameSpec", "scorer 'my_rewards:FrameSpec' has no class attribute `card`"),
        ("my_rewards:Redness/blue", "there are: my_rewards:Redness/red"),
        ("rednes", "there is no scorer 'rednes'; did you mean 'redness'?"),
    ],
)
def test_a_mistake_in_the_name_is_told(folder: Path, key: str, words: str) -> None:
    """A traceback from inside an import says little to whoever mistyped a name."""
    done = dry_run(folder, key)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("not here: ")]
    assert line.startswith("not here: rewards.0.key: ") and words in line


def test_the_table_of_scorers_is_current() -> None:
    """People would look for files that nobody reads, or miss a key."""
    assert script("write_rewards").page(PAGE) == PAGE, "run `make docs`"
