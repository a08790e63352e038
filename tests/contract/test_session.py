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
from tests.contract.test_controller import FakeGallery, FakeLearner, FakePool, FakeRewards

CONFIG = RunConfig(name="fails", rewards=(RewardConfig(key="tiny_clip"),))


class LearnerWithoutNode(FakeLearner):
    """It can't start, and says when it is stopped."""

    async def start(self) -> None:
        raise InfraFailure("the node is gone")

    async def stop(self) -> None:
        self.events.append("stopped")


class RewardsThatDoNotStop(FakeRewards):
    async def stop(self) -> None:
        raise RuntimeError("the router is closed")


class PoolThatDoesNotStop(FakePool):
    async def stop(self) -> None:
        await asyncio.Event().wait()


def failing_roles() -> Roles:
    return Roles(PoolThatDoesNotStop(), RewardsThatDoNotStop(), LearnerWithoutNode(), FakeGallery())


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


def test_what_goes_wrong_in_stopping_hides_neither_the_cause_nor_other_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead node: the reward router's RuntimeError became the run's, and the learner's GPUs stayed taken."""
    monkeypatch.setattr("astrolabe_ray.run.STOP_TIMEOUT_S", 0.2)
    roles, run_dir = failing_roles(), RunDir.create(str(tmp_path), "tiny", "fails")
    wiring = replace(WIRING, make_roles=lambda config: roles)
    with pytest.raises(InfraFailure, match="the node is gone"):
        asyncio.run(_record(CONFIG, wiring, run_dir, None))
    assert "the node is gone" in run_dir.failure.read_text()
    assert isinstance(roles.learner, LearnerWithoutNode) and roles.learner.events == ["stopped"]
    assert "the router is closed" in caplog.text
    assert "the rollout actors did not stop within 0.2 s" in caplog.text


def test_a_report_that_cannot_be_made_does_not_hide_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that dies on a full disk ended in a traceback of the page's."""

    def full(run_dir: RunDir) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("astrolabe_ray.cli.session.build_report", full)
    run_dir = RunDir.create(str(tmp_path), "tiny", "fails")
    wiring = replace(WIRING, make_roles=lambda config: failing_roles())
    monkeypatch.setattr("astrolabe_ray.run.STOP_TIMEOUT_S", 0.2)
    with pytest.raises(InfraFailure, match="the node is gone"):
        asyncio.run(_record(CONFIG, wiring, run_dir, None))
    assert "no report: OSError(28" in capsys.readouterr().out


async def test_roles_that_do_not_stop_are_told_of_when_nothing_else_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPUs that stay taken after a run that seems fine."""
    monkeypatch.setattr("astrolabe_ray.run.STOP_TIMEOUT_S", 0.2)
    hanging, failing = await failing_roles().stop()
    assert isinstance(hanging, InfraFailure) and isinstance(failing, RuntimeError)
