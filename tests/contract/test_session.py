"""A run on the command line, with roles that fail."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from astrolabe_ray.cli.session import _record
from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.schema import RewardConfig, RunConfig
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.run import Roles
from launch import WIRING


def test_where_a_failure_came_from_is_in_the_folder_of_the_run(tmp_path: Path) -> None:
    """People are told one line; who looks for the fault had nothing but it."""

    def make_roles(config: RunConfig) -> Roles:
        raise InfraFailure("the node is gone")

    wiring: Wiring = replace(WIRING, make_roles=make_roles)
    run_dir = RunDir.create(str(tmp_path), "tiny", "fails")
    config = RunConfig(name="fails", rewards=(RewardConfig(key="tiny_clip"),))
    with pytest.raises(InfraFailure):
        asyncio.run(_record(config, wiring, run_dir, None))
    text = run_dir.failure.read_text()
    assert "in make_roles" in text and "the node is gone" in text
    assert run_dir.report.exists()
