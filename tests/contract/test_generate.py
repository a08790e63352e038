"""`launch.py generate` as people use it: mistakes end in a line before anything loads, videos in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from astrolabe_ray.report.video import decode_mp4, encode_mp4
from tests.small_run import moving_square
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[2]
RED = "a small red circle moves left on a black background"
BLUE = "a large blue star rotates in place on a white background"

LOUD_LAUNCH = """
import sys
sys.argv = ["launch.py", *sys.argv[1:]]
import launch
try:
    launch.main()
finally:
    print("LOADED", *sorted({"torch", "ray"} & set(sys.modules)))
"""


def generate(*arguments: str, cwd: Path = ROOT, rc: int = 0) -> subprocess.CompletedProcess[str]:
    """`python launch.py generate ARGUMENTS`; its last line of stdout names heavy packages that loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOUD_LAUNCH, "generate", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == rc, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt: give either --prompt TEXT or --prompt-file FILE"),
        (
            ["--prompt", RED, "--prompt-file", "prompts.txt"],
            "two sources of prompts: give either --prompt TEXT or --prompt-file FILE",
        ),
        (["--prompt", " "], "--prompt is empty; describe what the video shows"),
        (["--prompt_file", "nowhere.txt"], "can't read the prompt file nowhere.txt: "),
        (["--prompt_file", "latin1.txt"], "can't read the prompt file latin1.txt: "),
        (["--prompt_file", "empty.txt"], "the prompt file empty.txt holds no prompt; "),
        (
            ["--prompt", RED, "--base_model", "longlife"],
            "there is no base model 'longlife'; did you mean 'longlive'? There are: causal_forcing, ",
        ),
        (["--prompt", RED, "--model_path", "no_model"], "model 'no_model' lacks "),
        (["--prompt", RED, "--base-model", "longlive"], "model 'wan_models/Wan2.1-T2V-1.3B' lacks "),
        (["--prompt", RED, "--lora_path", "no_lora"], "there is no LoRA in "),
        (["--prompt", RED, "--checkpoint", "no.pt"], "model 'builtin:sprites' lacks "),
        (
            ["--prompt", RED, "--height", "40"],
            "--height 40 is not a multiple of 16 (8 from the VAE, 2 from the ",
        ),
        (["--prompt", RED, "--width", "8"], "--width 8 is not a multiple of 16 "),
        (
            ["--prompt", RED, "--local_attn_size", "3", "--sink_size", "1"],
            "window_frames 3 is smaller than sink_frames 1 + chunk_frames 3 = 4; use 4 or more",
        ),
        (
            ["--prompt", RED, "--denoising_steps", "500,750"],
            "--denoising-steps 500,750 must fall from at most 1000 to above 0, each only once, for example ",
        ),
        (["--prompt", RED, "--num-frames", "33", "--seconds", "4"], "--num-frames and --seconds both give "),
        (["--prompt", RED, "--num_frames", "0"], "generate: num_frames = 0: must be greater than 0"),
        (["--prompt", RED, "--height", "16384"], "generate: height = 16384: must be at most 8192"),
        (["--prompt", RED, "--output-dir", ""], "--output-dir is empty; name a folder"),
        (["--prompt", RED, "--initial-video", "x.avi"], "--initial-video x.avi must be a video (.mp4) or "),
        (["--prompt", RED, "--initial-video", "x.mp4"], "--initial-video x.mp4 does not exist"),
        (
            ["--prompt", RED, "--rewards", "tiny_clap"],
            "rewards.0.key: there is no scorer 'tiny_clap'; did you ",
        ),
        (
            ["--prompt", f"{RED} | {BLUE}", "--rewards", "tiny_clip"],
            "--rewards can't judge videos with several ",
        ),
        (["--prompt", RED, "--stream", "--no-save-videos"], "--stream writes videos and --no-save-videos "),
        (["--prompt", RED, "--guidance_scale", "3"], "--guidance-scale is not an option of generate: "),
        (["--prompt", RED, "--mixed_precision", "fp16"], "--dtype fp16 overflows in these models; "),
        (["--prompt", RED, "--config-file", "nowhere.yaml"], "can't read the options in nowhere.yaml: "),
        (["--prompt", RED, "--output_dir", "latin1.txt"], "--output-dir latin1.txt can't be written: "),
        (
            ["--prompt", "a[3s] | b[3s]", "--seconds", "3"],
            "scene 2 ('b') would start at 3 s, but the video ends at 3 s; make it longer or its ",
        ),
    ],
    ids=lambda value: " ".join(value[-2:])[:40] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_line_before_anything_heavy_loads(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """It would show as a page of traceback, after half a minute of start-up."""
    (tmp_path / "latin1.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "no_lora").mkdir()
    done = generate(*arguments, cwd=tmp_path, rc=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}"), line
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_a_mistake_in_a_scene_of_a_file_is_shown_where_it_is(tmp_path: Path) -> None:
    """One of a thousand prompts is wrong; which one, and where?"""
    (tmp_path / "prompts.txt").write_text("a\n\nb[3s] | c[3]\n")
    done = generate("--prompt-file", "prompts.txt", cwd=tmp_path, rc=2)
    assert done.stderr.splitlines() == [
        "error: prompts.txt, prompt 2: column 10 of the prompt: a duration needs its unit; write [3s]",
        "       b[3s] | c[3]",
        "                ^",
    ]


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A traceback from deep inside of torch."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    options = ["--prompt", RED, "--local", "--gpus-per-worker", "1", "--output-dir", str(tmp_path)]
    done = generate(*options, rc=2)
    assert "error: there is no CUDA device here; use --gpus-per-worker 0 to work on the CPU" in done.stderr


def test_help_teaches_by_examples() -> None:
    """Forty options and no way in."""
    text = generate("--help").stdout
    for words in (
        "--prompt-file",
        "--samples-per-prompt",
        "--initial-video",
        "Scenes:",
        "[15s#]",
        "[#] starts",
        "Default: 0",
    ):
        assert words in text


def test_videos_scores_and_what_a_rerun_does(tmp_path: Path) -> None:
    """The parts may each work alone and still not together."""
    (tmp_path / "prompts.txt").write_text(f"{RED}\n{BLUE}\n{RED}\n")
    options = ["--prompt_file", "prompts.txt", "--max_samples", "2", "--output_dir", "out", "--local"]
    done = generate(*options, "--batch_size", "2", "--rewards", "tiny_clip,motion_quality", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "LOADED torch", "--local needs no Ray"
    assert "Loading weights" not in done.stderr, "the bar of a library between our lines"
    results = tmp_path / "out" / "results.jsonl"
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record["prompt"] for record in records] == [RED, BLUE]
    assert all(record["scores"]["tiny_clip"] > 0.5 for record in records)
    means = json.loads((tmp_path / "out" / "average_scores.json").read_text())
    assert means["tiny_clip"] == pytest.approx(sum(r["scores"]["tiny_clip"] for r in records) / 2)
    video, comment = decode_mp4((tmp_path / "out" / "videos" / "00000.mp4").read_bytes())
    assert video.shape == (33, 3, 192, 192)
    assert video[:, 0].max() > 180 and video[:, 2, :20].max() < 90, "a red circle on black"
    assert json.loads(comment)["seed"] == records[0]["seed"]

    before = results.read_bytes()
    again = generate(*options, "--rewards", "tiny_clip,motion_quality", cwd=tmp_path)
    assert "2 done before and kept, 0 made again, 0 new" in again.stdout
    assert results.read_bytes() == before
    more = generate(*options, "--rewards", "tiny_clip,motion_quality", "--max_samples", "3", cwd=tmp_path)
    assert "2 done before and kept, 0 made again, 1 new" in more.stdout
    assert results.read_bytes().startswith(before)
    scores = [json.loads(line)["scores"]["tiny_clip"] for line in results.read_text().splitlines()]
    assert "Average of 3: motion_quality" in more.stdout and f"tiny_clip {sum(scores) / 3:.4f}" in more.stdout

    sheet = tmp_path / "out" / "sheets" / "00001.png"
    sheet.unlink()
    fewer = generate(*options, "--rewards", "tiny_clip,motion_quality", cwd=tmp_path)
    assert "2 done before and kept, 0 made again, 0 new" in fewer.stdout
    assert "1 that this command does not ask for, set aside in other_results.jsonl" in fewer.stdout
    assert "contact sheets drawn anew from their videos: 1" in fewer.stdout and sheet.exists()
    assert "Average of 2: " in fewer.stdout and f"tiny_clip {sum(scores[:2]) / 2:.4f}" in fewer.stdout
    assert fewer.stdout.splitlines()[-1] == "LOADED", "nothing is generated"
    other = generate(*options, "--sink_size", "0", cwd=tmp_path)
    assert "0 done before and kept, 2 made again, 0 new" in other.stdout


def test_a_length_becomes_whole_chunks_and_says_so(tmp_path: Path) -> None:
    """Someone asks for 240 frames and wonders why there are 237."""
    root = write_tiny_model(tmp_path / "model")
    common = ["--prompt", "a", "--model-path", str(root), "--output-dir", str(tmp_path), "--local"]
    done = generate(*common, "--num_frames", "240", "--no-save-videos", "--no-contact-sheets")
    assert "up to 237 frames (29.62 s)" in done.stdout
    assert "not 240 frames: the nearest whole number of chunks" in done.stdout
    (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert record["num_frames"] == 237
    assert not (tmp_path / "videos").exists() and not (tmp_path / "sheets").exists()


def test_a_video_goes_on_from_a_file_and_is_streamed(tmp_path: Path) -> None:
    """Flags that are read and not handed on."""
    (tmp_path / "given.mp4").write_bytes(encode_mp4(moving_square(frames=21), fps=8, comment=""))
    common = ["--prompt", RED, "--initial-video", str(tmp_path / "given.mp4"), "--local", "--seconds", "3"]
    told = generate(*common, "--stream", "--output-dir", str(tmp_path / "out")).stdout
    assert "1, up to 24 frames (3.00 s)" in told, "what was given is not counted, and has the first frame"
    assert "note" not in told
    generate(*common, "--low-memory", "--output-dir", str(tmp_path / "frugal"))
    videos = [
        decode_mp4((tmp_path / name / "videos" / "00000.mp4").read_bytes())[0] for name in ("out", "frugal")
    ]
    assert [len(video) for video in videos] == [21 + 24] * 2
    assert np.abs(videos[0].astype(int) - videos[1]).mean() < 3
    assert videos[0][:21, 1].max() > 120, "the green square of the file comes first"
