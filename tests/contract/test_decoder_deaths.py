"""A decoder that dies, hangs or lies: its own client is told what happened, the next one is served."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from astrolabe_ray.report.video import encode_mp4
from tests.local_door import Answer, local_door, npy, post

LIMITS: dict[str, Any] = {"max_frames": 300, "max_video_bytes": 3 * 300 * 256 * 256, "decode_timeout_s": 20.0}
GOOD = np.zeros((9, 3, 16, 16), np.uint8)
SHAPE = '{"shape": [9, 3, 16, 16]}'
"""Of 6912 bytes of frames."""


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    with local_door(keys=["image_quality"], **LIMITS) as url:
        yield url


@pytest.fixture(scope="module")
def hasty_door() -> Iterator[str]:
    hasty: dict[str, Any] = {**LIMITS, "decode_timeout_s": 1.0}
    with local_door(keys=["image_quality"], **hasty) as url:
        yield url


@pytest.fixture(scope="module")
def long_mp4() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (300, 3, 16, 16), np.uint8)
    return encode_mp4(noise, fps=8, comment="")


def decoders() -> list[psutil.Process]:
    """Children of this process, where the door is, that decode."""
    found = []
    for child in psutil.Process().children():
        try:
            found += [child] if "reward_servers.mp4_frames" in child.cmdline() else []
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def decoding(caller: threading.Thread) -> psutil.Process | None:
    """A decoder that has computed for a while beyond its start; None if none was seen before its answer."""
    while caller.is_alive():
        for child in decoders():
            try:
                if any("libavcodec" in each.path for each in child.memory_maps()):
                    return child
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(0.002)
    return None


def killed_in_mid_file(door: str, file: bytes, how: signal.Signals) -> Answer:
    """The answer to `file`, whose decoder got the signal `how`. A busy machine may hide some decoders."""
    for _ in range(20):
        answers: list[Answer] = []
        caller = threading.Thread(target=lambda: answers.append(post(door, file)))  # noqa: B023
        caller.start()
        decoder = decoding(caller)
        if decoder is not None:
            decoder.send_signal(how)
        caller.join(30)
        if decoder is not None and answers[0].status != 200:
            return answers[0]
    raise AssertionError("nothing decodes for long enough")


@pytest.mark.parametrize(
    ("how", "status", "error", "words"),
    [
        (signal.SIGSEGV, 422, "bad_mp4", "ended with -11: the file is damaged or hostile"),
        (signal.SIGKILL, 503, "unavailable", "ended from outside"),
    ],
)
def test_a_decoder_killed_in_mid_file_fails_its_own_request(
    door: str, long_mp4: bytes, how: signal.Signals, status: int, error: str, words: str
) -> None:
    """A crash of FFmpeg that ends the door; a good video that is called hostile because memory was short."""
    answer = killed_in_mid_file(door, long_mp4, how)
    assert (answer.status, answer.error) == (status, error), answer
    assert words in answer.body["message"]
    assert not decoders(), "nothing is left of it"
    assert post(door, long_mp4).status == 200


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("kill -SEGV $$", "ended with -11"),
        ("exit 3", "ended with 3"),
        (f"echo '{SHAPE}'; head -c 3000 /dev/zero; kill -ABRT $$", "ended with -6"),
        (f"echo '{SHAPE}'; head -c 3000 /dev/zero", "ended with 0"),
        (f"echo '{SHAPE}'; head -c 6912 /dev/zero; exit 1", "ended with 1"),
        (f"echo '{SHAPE}'; yes", "no video"),
        ("yes", "no video"),
        ("yes | tr -d '\\n'", "no video"),
        ("""echo '{"shape": [1, 1000000000, 16, 16]}'; sleep 60""", "no video"),
        ("""echo '{"shape": [9, 3]}'""", "no video"),
        ("""echo '{"shape": 7}'""", "no video"),
        (f"echo '{SHAPE}'; head -c 3000 /dev/zero; sleep 60", "over 1 s"),
        ("sleep 60", "over 1 s"),
    ],
)
def test_whatever_a_decoder_does_its_client_is_told(
    hasty_door: str, program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that took the decoder over says what it likes, and must reach no further than its request."""
    fake = tmp_path / "decoder"
    fake.write_text(f"#!/bin/bash\ncat > /dev/null\n{program}\n")
    fake.chmod(0o755)
    file = encode_mp4(GOOD, fps=8, comment="")
    before = psutil.Process().memory_info().rss
    monkeypatch.setattr(sys, "executable", str(fake))
    began = time.monotonic()
    answer = post(hasty_door, file)
    assert (answer.status, answer.error) == (422, "bad_mp4"), answer
    assert words in answer.body["message"]
    assert time.monotonic() - began < 30, "no program is waited for: they would take a minute, or for ever"
    assert psutil.Process().memory_info().rss - before < 500e6
    assert post(hasty_door, npy(GOOD)).status == 200


def test_a_decoder_that_does_not_read_is_ended(
    hasty_door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that is full for ever."""
    fake = tmp_path / "decoder"
    fake.write_text("#!/bin/bash\nexec sleep 60\n")
    fake.chmod(0o755)
    file = b"\x00\x00\x00\x18ftypisom" + bytes(5_000_000)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert "over 1 s" in post(hasty_door, file).body["message"]
    assert not [c for c in psutil.Process().children() if c.name() == "sleep"]
