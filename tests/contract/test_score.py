"""`launch.py score` as people use it: files, a door, a run's folder; mistakes end in a line."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from astrolabe_ray.cli.app import make_app
from astrolabe_ray.cli.score import Scored, What, score, table
from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.data.sprites.captions import SpriteCaption
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure
from astrolabe_ray.report.run_dir import read_json, read_lines, write_json, write_lines
from astrolabe_ray.report.video import decode_mp4, encode_mp4
from astrolabe_ray.runtime import cluster
from astrolabe_ray.saved_videos import SavedVideo, prompt_of
from astrolabe_ray.types import FrameSpec
from astrolabe_ray.video_scoring import score_video
from launch import WIRING
from reward_servers.local_pool import LocalRewardPool
from tests.local_door import RED, TOKEN, local_door
from tests.small_run import write_run

ROOT = Path(__file__).parents[2]
BLUE = "a large blue star rotates in place on a white background"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two mp4 files that say what they show: as a run says it, and as `generate` does."""
    folder = tmp_path_factory.mktemp("videos")
    captions = [
        SpriteCaption("small", "red", "circle", "moves left", "black"),
        SpriteCaption("large", "blue", "star", "rotates in place", "white"),
    ]
    facts = {"prompt": BLUE, "seed": 7}
    comments = [f"{RED} | seed 7 | policy 0.3 | after", json.dumps(facts)]
    files = [folder / "red.mp4", folder / "blue.mp4"]
    for file, clip, comment in zip(files, render_clips(captions, seed=3), comments, strict=True):
        file.write_bytes(encode_mp4(clip, fps=8, comment=comment))
    return files


def what(*videos: Path, **more: Any) -> What:
    nothing = What((), None, None, (), None, None, None, False, False)
    return What(**{**vars(nothing), "videos": videos, **more})


def small(file: Path) -> np.ndarray:
    """The frames, 32 pixels wide as they were before they were enlarged for people."""
    return derive_view(decode_mp4(file.read_bytes())[0], FrameSpec(height=32, width=32))


def in_process(video: np.ndarray, prompt: str, keys: Sequence[str]) -> dict[str, float]:
    pool = LocalRewardPool([RewardConfig(key=key) for key in keys])
    return asyncio.run(score_video(pool, video, prompt, lambda array: array))


def test_files_are_scored_with_the_prompts_that_they_say(
    videos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt of one video for another; or pixels that were enlarged for people, taken for the model's."""
    keys = ("tiny_clip", "motion_quality", "image_quality")
    score(what(*videos, as_json=True), WIRING)
    red, blue = json.loads(capsys.readouterr().out)
    assert [red["prompt"], blue["prompt"]] == [RED, BLUE]
    assert red["scores"] == pytest.approx(in_process(small(videos[0]), RED, keys))
    assert blue["scores"] == pytest.approx(in_process(small(videos[1]), BLUE, keys))


def test_a_door_says_the_same_as_this_process(
    videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two places to score that are two rewards."""
    file = tmp_path / "token"
    file.write_text(TOKEN.replace(" ", "-") + "\n")
    token = TOKEN.replace(" ", "-")
    keys = ("tiny_clip", "image_quality")
    score(what(*videos, rewards=keys, as_json=True), WIRING)
    here = json.loads(capsys.readouterr().out)
    with local_door(token=token) as url:
        score(what(*videos, rewards=keys, url=url, token_file=file, as_json=True), WIRING)
    there = json.loads(capsys.readouterr().out)
    assert [each["scores"].keys() for each in there] == [set(keys)] * 2
    for a, b in zip(here, there, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-6)


def test_the_table_has_a_line_for_each_video_and_the_means() -> None:
    """A failed video that counts as zero in the mean."""
    scored = [
        Scored(SavedVideo(Path("a.mp4"), "p", "a.mp4"), {"x": 0.25, "longer_key": 1.0}),
        Scored(SavedVideo(Path("long/b.mp4"), "p", "long/b.mp4"), {}, "damaged"),
        Scored(SavedVideo(Path("c.mp4"), "p", "c.mp4"), {"x": 0.75, "longer_key": -2.0}),
    ]
    assert table(scored).splitlines() == [
        "video            x  longer_key",
        "a.mp4       0.2500      1.0000",
        "long/b.mp4       -           -",
        "c.mp4       0.7500     -2.0000",
        "mean        0.5000     -0.5000",
    ]


def test_a_video_that_cannot_be_scored_is_named_and_the_others_are_scored(
    videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One damaged file among hundreds that costs all their scores, or that nobody notices."""
    damaged, scenes = tmp_path / "damaged.mp4", tmp_path / "scenes.mp4"
    damaged.write_bytes(videos[0].read_bytes()[:-300])
    scenes.write_bytes(encode_mp4(np.zeros((5, 3, 32, 32), np.uint8), fps=8, comment='{"prompt": "a | b"}'))
    with pytest.raises(DataFailure, match=r"1 of 2 videos were not scored\n.*scenes.mp4: it has 2 scenes"):
        score(what(videos[0], scenes, rewards=("image_quality",)), WIRING)
    lines = capsys.readouterr().out.splitlines()
    wanted = in_process(small(videos[0]), RED, ["image_quality"])
    assert lines[1].endswith(f"{wanted['image_quality']:.4f}")
    assert lines[2].split() == [str(scenes), "-"]
    with pytest.raises(DataFailure, match=r"damaged\.mp4: the mp4 can't be decoded"):
        score(what(damaged, prompt=RED, rewards=("image_quality",)), WIRING)


def test_a_run_is_scored_anew_beside_its_old_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores that are written to the wrong video, or old ones that are lost."""
    run = write_run(tmp_path).path
    score(what(from_run=run, rewards=("motion_quality",)), WIRING)
    score(what(from_run=run, rewards=("image_quality",)), WIRING)
    index, records = read_json(run / "eval_videos" / "index.json"), read_lines(run / "rescored.jsonl")
    assert [r["file"] for r in records] == [e["file"] for e in index]
    for entry, record in zip(index, records, strict=True):
        assert (record["phase"], record["prompt"]) == (entry["phase"], entry["prompt"])
        assert record["scores"] == entry["scores"]
        video = small(run / "eval_videos" / entry["file"])
        wanted = in_process(video, entry["prompt"], ["motion_quality", "image_quality"])
        assert record["rescored"] == pytest.approx(wanted)
    content = read_json(run / "agreement.json")
    assert content["changes"]["tiny_clip"]["num_videos"] == 2
    before = {(a["first"], a["second"]): a for a in content["rescored"]["before"]}
    assert {("tiny_clip", "motion_quality"), ("image_quality", "image_quality (now)")} <= before.keys()
    assert ("tiny_clip", "image_quality (now)") not in before, "that is the pair tiny_clip, image_quality"
    everything = {a["first"]: a for a in content["evaluations"]["after"]}
    assert everything["tiny_clip"]["num_videos"] == 4
    printed = capsys.readouterr().out
    assert (run / "agreement.md").read_text() in printed and str(run / "rescored.jsonl") in printed


def test_a_video_that_was_made_again_loses_the_scores_of_the_old_one(
    tmp_path: Path, videos: list[Path]
) -> None:
    """`generate` with another seed writes the same names."""
    folder = tmp_path / "generated"
    (folder / "videos").mkdir(parents=True)
    record = {"id": 0, "sample": 0, "prompt": RED, "video": "videos/00000.mp4", "scores": {"tiny_clip": 0.5}}
    write_lines(folder / "results.jsonl", [record])
    file = folder / "videos" / "00000.mp4"
    file.write_bytes(videos[0].read_bytes())
    score(what(from_run=folder, rewards=("image_quality",)), WIRING)
    file.write_bytes(videos[1].read_bytes())
    score(what(from_run=folder, rewards=("motion_quality",)), WIRING)
    (line,) = read_lines(folder / "rescored.jsonl")
    assert line["scores"] == {"tiny_clip": 0.5} and line["rescored"].keys() == {"motion_quality"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "name either videos or --from-run"),
        ({"videos": (Path("a.mp4"),), "from_run": Path(".")}, "name either videos or --from-run"),
        ({"videos": (Path("nowhere.mp4"),), "prompt": RED}, "there is no file nowhere.mp4"),
        ({"videos": (Path("launch.py"),)}, "launch.py does not say what it shows; give --prompt"),
        ({"videos": (Path("launch.py"),), "prompt": " "}, "--prompt is empty"),
        ({"from_run": Path("docs")}, "docs has no videos with prompts"),
        ({"from_run": Path("docs"), "prompt": RED}, "--prompt does not go with --from-run"),
        (
            {"videos": (Path("launch.py"),), "prompt": RED, "rewards": ("tiny_clap",)},
            "did you mean 'tiny_clip'",
        ),
        (
            {"videos": (Path("launch.py"),), "prompt": RED, "rewards": ("clip_score",)},
            "clip-vit-large-patch14",
        ),
        ({"videos": (Path("launch.py"),), "url": "x", "config": "y"}, "two places to score"),
        ({"videos": (Path("launch.py"),), "token_file": Path("t")}, "--token-file .* needs --url"),
        ({"videos": (Path("launch.py"),), "url": "x", "gpu": True}, "--gpu is for scoring in this process"),
        (
            {"videos": (Path("launch.py"),), "prompt": RED, "url": "http://x"},
            "ASTROLABE_TOKEN holds no token",
        ),
    ],
)
def test_mistakes_are_named(more: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, or minutes of loading before it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("ASTROLABE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=words):
        score(what(**more), WIRING)


def test_a_run_whose_videos_are_gone_is_named(tmp_path: Path) -> None:
    """A folder that was copied without its videos."""
    run = write_run(tmp_path).path
    for file in (run / "eval_videos").glob("*/*.mp4"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"all 6 videos are gone"):
        score(what(from_run=run), WIRING)
    write_json(run / "eval_videos" / "index.json", [{"file": "after/000.mp4"}])
    with pytest.raises(ConfigError, match="can't be read: KeyError\\('prompt'\\)"):
        score(what(from_run=run), WIRING)


def test_one_video_that_is_gone_costs_nothing_but_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that somebody moved, and a folder that is refused for it, or an earlier score that is lost."""
    run = write_run(tmp_path).path
    score(what(from_run=run, rewards=("motion_quality",)), WIRING)
    earlier = {line["file"]: line for line in read_lines(run / "rescored.jsonl")}
    (run / "eval_videos" / "after" / "001.mp4").unlink()
    with pytest.raises(DataFailure, match=r"1 of 6 videos were not scored\n.*after/001.mp4: it can't be"):
        score(what(from_run=run, rewards=("image_quality",)), WIRING)
    lines = {line["file"]: line for line in read_lines(run / "rescored.jsonl")}
    assert lines.pop("after/001.mp4") == earlier["after/001.mp4"]
    assert len(lines) == 5
    assert all(line["rescored"].keys() == {"motion_quality", "image_quality"} for line in lines.values())
    assert "after/001.mp4" in capsys.readouterr().out


class Ending:
    """A scorer that says 0.25 twice and then raises."""

    def __init__(self, error: BaseException) -> None:
        self._error, self._num_asked, self.is_closed = error, 0, False

    def score(self, video: Path, prompt: str) -> dict[str, float]:
        self._num_asked += 1
        if self._num_asked == 3:
            raise self._error
        return {"image_quality": 0.25}

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("error", [InfraFailure("no server answers"), KeyboardInterrupt()])
def test_what_was_scored_before_the_end_is_written(
    error: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hours of scoring that a server's death, or Ctrl-C, takes along; also of an earlier call."""
    run = write_run(tmp_path).path
    score(what(from_run=run, rewards=("motion_quality",)), WIRING)
    capsys.readouterr()
    scorer = Ending(error)
    with pytest.raises(type(error)):
        score(what(from_run=run), replace(WIRING, pool_scorer=lambda *_: scorer))
    lines = read_lines(run / "rescored.jsonl")
    assert [line["rescored"].get("image_quality") for line in lines] == [0.25, 0.25, None, None, None, None]
    assert all("motion_quality" in line["rescored"] for line in lines)
    assert capsys.readouterr().out.count("0.2500") >= 2 and scorer.is_closed


BRIEF = """
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.schema import ClusterConfig, RunConfig

def brief() -> RunConfig:
    tiny = load("configs/nft_tiny.py:tiny_sprites", ())
    return tiny.model_copy(update={"cluster": ClusterConfig(reward_idle_timeout_s=60)})
"""


def test_running_servers_of_a_config_are_joined_and_left(
    videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A question to the wiring in words that it does not know; or servers that are started unasked."""
    monkeypatch.chdir(ROOT)
    seen: list[object] = []
    monkeypatch.setattr(cluster, "connect", lambda _, *, may_start: seen.append(may_start))
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append("left"))
    (tmp_path / "brief.py").write_text(BRIEF)
    config = f"{tmp_path}/brief.py:brief"

    def running(rewards: Sequence[RewardConfig]) -> list[str]:
        return [reward.key for reward in rewards if reward.key != "motion_quality"]

    def pool_scorer(rewards: Sequence[RewardConfig], cluster: ClusterConfig | None) -> Ending:
        seen.append(([reward.key for reward in rewards], cluster and cluster.reward_idle_timeout_s))
        return Ending(AssertionError())

    wiring = replace(WIRING, running_rewards=running, pool_scorer=pool_scorer)
    score(what(videos[0], config=config, rewards=("image_quality",)), wiring)
    assert seen == [False, (["image_quality"], 60.0), "left"] and "0.2500" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=f"no reward server of motion_quality runs.*--config {config}"):
        score(what(videos[0], config=config, rewards=("motion_quality",)), wiring)
    assert seen[3:] == [False, "left"]
    with pytest.raises(ConfigError, match="'clip_score' is no reward of"):
        score(what(videos[0], config=config, rewards=("clip_score",)), wiring)


def test_the_wiring_takes_what_the_command_gives() -> None:
    """A fake that takes what the real one does not, so that only people notice."""
    for name, arguments in (
        ("running_rewards", ([],)),
        ("pool_scorer", ([], None)),
        ("make_video_rewards", ([], None)),
        ("door_scorer", ("http://x", "t", ())),
    ):
        inspect.signature(getattr(WIRING, name)).bind(*arguments)


def test_prompts_with_the_words_of_a_comment_come_back_whole(tmp_path: Path) -> None:
    """A prompt that is cut off at its own bar."""
    file = tmp_path / "a.mp4"
    said = f"{RED} | seed of a tree | seed 7 | policy 0.3 | after"
    file.write_bytes(encode_mp4(np.zeros((2, 3, 32, 32), np.uint8), fps=8, comment=said))
    assert prompt_of(file) == f"{RED} | seed of a tree"


@pytest.mark.parametrize("token", ["", "short", "sixteen characters and spaces", "ä" * 20])
def test_a_door_does_not_open_without_a_token_that_is_one(token: str, tmp_path: Path) -> None:
    """A door that everybody can open."""
    file = tmp_path / "token"
    file.write_text(token)
    command = ["launch.py", "rewards", "up", "--config", "configs/nft_tiny.py:tiny_sprites", "--http"]
    done = subprocess.run(
        [sys.executable, *command, "--token-file", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "openssl rand -hex 32" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", [("--port", "8101"), ("--host", "0.0.0.0"), ("--token-file", "t")])
def test_flags_of_a_door_that_was_not_asked_for_are_refused(flag: tuple[str, str]) -> None:
    """Servers that come up, and a door that seems to be open."""
    command = ["rewards", "up", "--config", "configs/nft_tiny.py:tiny_sprites", *flag]
    found = CliRunner().invoke(make_app(WIRING), command)
    assert isinstance(found.exception, ConfigError)
    assert str(found.exception) == f"{flag[0]} is for the HTTP door; it needs --http"
