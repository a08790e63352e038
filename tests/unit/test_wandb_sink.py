"""W&B with the real library, offline: no account, no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from astrolabe_ray.config.schema import LoggingConfig
from astrolabe_ray.metrics.wandb_sink import WandbSink
from astrolabe_ray.report.video import encode_mp4

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
