"""Rules that hold for every test: loopback Ray without tokens, no hubs, no skipped hardware by surprise."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from learner.spec import LearnerSpec

ROOT = Path(__file__).parents[1]

os.environ.update(
    RAY_AUTH_MODE="disabled",  # clusters of tests listen on loopback only
    RAY_USAGE_STATS_ENABLED="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    HF_HUB_OFFLINE="1",  # a test that would download must fail at once
    WANDB_MODE="offline",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in tests/system are system tests; browser and gpu tests say why they can't run here."""
    for item in items:
        if (ROOT / "tests" / "system") in item.path.parents:
            item.add_marker("system")
        if item.get_closest_marker("browser") and not _has_browser():
            item.add_marker(
                pytest.mark.skip(reason="needs chromium and chromedriver (.ci/run installs them)")
            )
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_browser() -> bool:
    return all(shutil.which(name) for name in ("chromium", "chromedriver"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def project_root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    """Where a run of this test may write."""
    return tmp_path / "logs"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, so that results can be compared bit by bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, to be read only."""
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def spec(model_root: Path, one_thread: None) -> LearnerSpec:
    """Of a learner over the tiny model; `learner_cases.changed` makes others of it."""
    from tests.learner_cases import spec_of

    return spec_of(model_root)
