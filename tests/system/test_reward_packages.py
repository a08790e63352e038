"""Packages that a reward names are really installed for its replicas, and for nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import pytest
import six

pytestmark = [pytest.mark.system, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
WANTED = "six==1.15.0"
PROGRAM = """
import asyncio
import json

import numpy as np
import ray
import six
from ray import serve

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.types import PolicyVersion, Rollout
from reward_servers.pool import ServeRewardPool
from reward_servers.readiness import Patience


async def minor_version(packages):
    reward = RewardConfig(key="tests.six_scorer:SixVersion", packages=packages, num_cpus=0.1)
    pool = ServeRewardPool([reward], patience=Patience(60, 300))
    await pool.start()
    videos = (ray.put(np.zeros((1, 3, 8, 8), np.uint8)),)
    (scores,) = await pool.score([Rollout("g", 0, "p", 0, PolicyVersion(0), "a", None, videos)])
    await pool.stop()
    return scores.values[reward.key]


ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
found = [asyncio.run(minor_version(packages)) for packages in (WANTED, "")]
print("found", json.dumps([*found, six.__version__]))
serve.shutdown()
ray.shutdown()
"""


def has_package_index() -> bool:
    """Whether pip finds the package where it looks on this machine."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=0", "--no-deps", WANTED]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([*command, "--dest", folder], capture_output=True, timeout=90).returncode == 0


def test_a_scorer_gets_the_packages_that_its_reward_names(tmp_path: Path) -> None:
    """A setting that Ray takes and that changes nothing: the scorer meets the trainer's version.

    Ray copies the virtual environment that it runs in, so it runs in one that has ours by reference.
    """
    if not has_package_index():
        pytest.skip(f"no package index with {WANTED} can be reached")
    assert f"six=={six.__version__}" != WANTED
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    began = time.monotonic()
    done = subprocess.run(
        [tmp_path / "env/bin/python", "-c", PROGRAM.replace("WANTED", repr(WANTED))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"two servers after {time.monotonic() - began:.0f} s")
    minor = float(six.__version__.split(".")[1])
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    assert json.loads(found.removeprefix("found ")) == [15.0, minor, six.__version__]
