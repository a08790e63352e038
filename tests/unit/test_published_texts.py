"""Prompt texts are the publishers', character by character, or refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from astrolabe_ray.config.reward_files import CLOSING, HPSV3_FILES, INSTRUCTION, REWARD_MODELS, WheelFile
from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.published_texts import filled, read_texts
from astrolabe_ray.models.reward_downloads import fetch_member, fetch_page
from astrolabe_ray.models.reward_files import file_problems
from tests.hub_server import hub_of
from tests.tiny_qwen import known

SOURCE = 'import nothing_here\n\nWORDS = "a {caption} b"\nNUMBER = 3\nJOINED = "a" + "b"\nNOTHING = unknown\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "texts.py"
    path.write_text(SOURCE)
    return path


def test_a_text_is_read_without_running_its_file(source: Path) -> None:
    """The publisher's file imports packages that nobody has, and could do anything."""
    assert read_texts(source, [known("WORDS", "a {caption} b")]) == ["a {caption} b"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WORDS", "has 13 characters and SHA-256 .*needed are 5"),
        ("ABSENT", "assigns no ABSENT"),
        ("NUMBER", "NUMBER in .* is no plain text"),
        ("JOINED", "JOINED in .* is no plain text"),
        ("NOTHING", "NOTHING in .* is no plain text"),
    ],
)
def test_what_is_not_the_known_text_is_refused(source: Path, name: str, words: str) -> None:
    """A model that is asked in other words gives other scores."""
    with pytest.raises(ConfigError, match=words):
        read_texts(source, [known(name, "known")])


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    """An error page that was saved as the file must not end in a traceback."""
    (tmp_path / "page.py").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="can't be read as Python source"):
        read_texts(tmp_path / "page.py", [known("WORDS", "x")])
    with pytest.raises(ConfigError, match="can't be read as Python source"):
        read_texts(tmp_path / "nowhere.py", [known("WORDS", "x")])


def test_captions_go_into_the_one_place_for_them_as_they_are() -> None:
    """Braces of a caption are not places, and two places would need two captions."""
    assert filled("a {caption} {{b}}", "{x} {}") == "a {x} {} {b}"
    for text in ("no place", "{one} {two}"):
        with pytest.raises(ConfigError, match="one placeholder"):
            filled(text, "x")


def test_absent_and_wrong_files_are_named_before_torch_is_needed(tmp_path: Path) -> None:
    """A replica would find out on a GPU, three times."""
    card = BY_NAME["hpsv3"]
    (line,) = file_problems(card, tmp_path, {})
    assert all(str(tmp_path / need.path) in line for need in HPSV3_FILES)
    for need in HPSV3_FILES:
        (tmp_path / need.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / need.path).write_text("INSTRUCTION = 'Rate it.'\n")
    (line,) = file_problems(card, tmp_path, {})
    assert "INSTRUCTION in " in line and "needed are 2,523" in line
    flow = BY_NAME["optical_flow"]
    assert file_problems(flow, tmp_path, {"raft_weights": ""}) == []
    (line,) = file_problems(flow, tmp_path, {"raft_weights": "raft.pth"})
    assert str(tmp_path / "raft.pth") in line


def test_the_texts_of_the_real_wheel_are_the_known_ones(tmp_path: Path) -> None:
    """Needs a package index: the wheel is downloaded, not installed."""
    source = REWARD_MODELS["hpsv3"].sources[0]
    assert isinstance(source, WheelFile)
    there = WheelFile(source.requirement, source.member, str(tmp_path / "texts.py"))
    try:
        fetch_member(there)
    except ConfigError as reason:
        pytest.skip(f"no package index: {reason}")
    instruction, closing = read_texts(tmp_path / "texts.py", [INSTRUCTION, CLOSING])
    assert (len(instruction), len(closing)) == (INSTRUCTION.num_chars, CLOSING.num_chars)
    assert "a red kite" in filled(instruction, "a red kite") and "<|Reward|>" in closing
    assert hashlib.sha256(instruction.encode()).hexdigest() == INSTRUCTION.sha256


def test_a_wheel_that_pip_does_not_have_says_what_to_do_by_hand(tmp_path: Path, monkeypatch) -> None:
    """Clusters are often offline."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match=r"pip can't download no-such-thing==1: .*by hand"):
        fetch_member(WheelFile("no-such-thing==1", "a.py", str(tmp_path / "a.py")))


def test_a_file_behind_an_address_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    """Half a file would be taken for the publisher's."""
    from astrolabe_ray.config.reward_files import WebFile

    page = tmp_path / "owner" / "repo" / "texts.py"
    page.parent.mkdir(parents=True)
    page.write_text(SOURCE)
    with hub_of(tmp_path) as address:
        fetch_page(WebFile(f"{address}/owner/repo/resolve/main/texts.py", str(tmp_path / "got" / "texts.py")))
        with pytest.raises(ConfigError, match="404"):
            fetch_page(WebFile(f"{address}/owner/repo/resolve/main/none.py", str(tmp_path / "none.py")))
    assert (tmp_path / "got" / "texts.py").read_text() == SOURCE
    assert not (tmp_path / "none.py").exists()
    with pytest.raises(ConfigError, match=r"can't fetch .*by hand"):
        fetch_page(WebFile(f"{address}/owner/repo/resolve/main/texts.py", str(tmp_path / "later.py")))


def test_looking_for_files_loads_no_torch() -> None:
    """A check that takes half a minute is a check that people skip."""
    code = (
        "import sys; from reward_servers.scorers import reward_problems as p; "
        "from astrolabe_ray.config.schema import RewardConfig as R; p(R(key='video_hpsv3_local')); "
        "print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
