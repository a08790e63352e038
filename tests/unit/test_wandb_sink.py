"""W&B with the real library, offline: no account, no network."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from astrolabe_ray.config.schema import LoggingConfig
from astrolabe_ray.metrics.wandb_sink import WandbSink
from astrolabe_ray.report.video import encode_mp4
from tests.small_run import write_run

LOSES_ITS_SERVICE = """
import sys, time, psutil
from pathlib import Path
from astrolabe_ray.config.schema import LoggingConfig
from astrolabe_ray.metrics.wandb_sink import WandbSink
sink = WandbSink(LoggingConfig(wandb="offline"), Path(sys.argv[1]), {})
sink.log({"reward": 1.0}, 1)
children = psutil.Process().children(recursive=True)
for child in children:
    child.terminate()
psutil.wait_procs(children, timeout=10)
for step in range(2, 6):
    sink.log({"reward": 2.0}, step)
    time.sleep(0.1)
sink.close()
print("the run goes on")
"""


def test_numbers_and_videos_are_on_disk_without_an_account(tmp_path: Path) -> None:
    """Whoever syncs later would find an empty run."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    video = run_dir / "0.mp4"
    video.write_bytes(encode_mp4(np.zeros((4, 3, 32, 32), np.uint8), fps=4, comment="black"))
    sink = WandbSink(LoggingConfig(wandb="offline"), run_dir, {"num_steps": 3})
    sink.log({"reward/total": 0.625}, 1)
    sink.log_videos({"a black square": video}, 1)
    sink.close()
    (record,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    assert b"reward/total" in record.read_bytes()
    assert list((run_dir / "wandb").rglob("media/videos/**/*.mp4"))


def test_a_whole_run_is_recorded_under_its_steps(tmp_path: Path) -> None:
    """W&B drops rows of earlier steps in silence: videos of all evaluations, told at the end, are lost."""
    sink = WandbSink(LoggingConfig(wandb="offline"), tmp_path, {})
    run_dir = write_run(tmp_path, sinks=(sink,))
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    rows = {row["_step"]: row for row in history(record.read_bytes())}
    assert list(rows) == [0, 1, 2, 3, 4]
    assert [rows[step]["heldout/total"] for step in (0, 2, 4)] == [1.0, 1.15, 1.2]
    assert [rows[step]["reward/total"] for step in (1, 2, 3, 4)] == [1.0, 1.1, 1.2, 1.3]
    assert [step for step in rows if "heldout/videos" in rows[step]] == [0, 2, 4]
    written = [path.read_bytes() for path in sorted((tmp_path / "wandb").rglob("*.mp4"))]
    assert sorted(written) == sorted(path.read_bytes() for path in run_dir.eval_videos.rglob("*.mp4"))


def test_a_continued_run_goes_on_in_the_same_run_of_wandb(tmp_path: Path) -> None:
    """One training as two curves that nobody can put together."""
    first = WandbSink(LoggingConfig(wandb="offline"), tmp_path, {})
    first.log({"reward/total": 0.5}, 1)
    first.close()
    second = WandbSink(LoggingConfig(wandb="offline"), tmp_path, {}, run_id=first.run_id)
    second.log({"reward/total": 0.75}, 2)
    second.close()
    assert second.run_id == first.run_id
    records = sorted((tmp_path / "wandb").glob(f"offline-run-*-{first.run_id}*/*.wandb"))
    assert [row["_step"] for record in records for row in history(record.read_bytes())] == [1, 2]


def history(content: bytes) -> list[dict[str, Any]]:
    """Rows of a .wandb file, numbers rounded to 6 digits.

    It is a header of 7 bytes and a LevelDB log: blocks of 32 KiB of pieces (checksum, length, kind),
    where the kinds 1 (whole) and 4 (last) end a record.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    rows, place, part = [], 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, part = Record.FromString(part), b""
            if record.HasField("history"):
                items = ((i.key or i.nested_key[0], json.loads(i.value_json)) for i in record.history.item)
                rows.append({key: round(v, 6) if isinstance(v, float) else v for key, v in items})
    return rows


def test_a_run_outlives_the_process_of_wandb(tmp_path: Path) -> None:
    """`ray job stop` ends all children at once; the run would fail while it saves."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_SERVICE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the run goes on"
    assert "Traceback" not in done.stderr
    assert done.stderr.count("W&B is no longer there") <= 1, "one warning, if it was noticed at all"
