"""Prompts with several scenes: what they say, and when each scene begins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actors.scenes import Scene, parse_scenes, plan_scenes
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.video_tasks import PlannedScene, VideoPlan


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("we are #1", [Scene("we are #1")]),
        ("a[5s] | b[10s#] | c", [Scene("a", 5), Scene("b", 10, True), Scene("c")]),
        ("a [2.5s] red circle|[#]b", [Scene("a red circle", 2.5), Scene("b", None, True)]),
        ("[ 5 s # ] a  b", [Scene("a b", 5, True)]),
        ("we are #1 [3s]", [Scene("we are #1", 3)]),
    ],
)
def test_a_prompt_is_read_as_it_is_written(text: str, scenes: list[Scene]) -> None:
    """A tag left in the text reaches the model as words; a # in a sentence is no cut."""
    assert parse_scenes(text) == scenes


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("a | | b", 4, "no text"),
        ("a |", 3, "no text"),
        ("a | [5s]", 4, "no text"),
        ("a [5s | b", 3, "never closed"),
        ("a 5s] | b", 5, "closes nothing"),
        ("a [5s]] | b", 7, "closes nothing"),
        ("a | b ] c [5s]", 7, "closes nothing"),
        ("a [5]", 3, "write [5s]"),
        ("a [5#]", 3, "write [5s#]"),
        ("a [0s]", 3, "shows nothing"),
        ("a [0.0s#]", 3, "shows nothing"),
        ("a [86401s]", 3, "may last a day"),
        ("a [9999999999999s]", 3, "may last a day"),
        ("a [5s] b [#]", 10, "one tag"),
        ("a [smiling] man", 3, "[smiling] is no tag"),
        ("a [-5s]", 3, "[-5s] is no tag"),
        ("a [5S]", 3, "[5S] is no tag"),
        ("", 1, "no text"),
    ],
)
def test_a_mistake_is_shown_where_it_is(text: str, column: int, words: str) -> None:
    """In a long prompt nobody finds a bracket that is only mentioned."""
    with pytest.raises(ConfigError) as caught:
        parse_scenes(text)
    message, shown, caret = str(caught.value).split("\n")
    assert message.startswith(f"column {column} of the prompt: ")
    assert words in message
    assert shown == text
    assert caret == " " * (column - 1) + "^"


def test_of_a_long_prompt_the_part_around_the_mistake_is_shown() -> None:
    """A caret under a line that wraps points anywhere."""
    text = "x" * 300 + "[5]" + "y" * 300
    with pytest.raises(ConfigError) as caught:
        parse_scenes(text)
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) < 80
    assert shown[caret.index("^") :].startswith("[5]")
    assert shown.startswith("...x") and shown.endswith("y...")


def planned(text: str, num_chunks: int | None = None, **more: int) -> VideoPlan:
    options = {"fps": 16, "chunk_frames": 3, "default_chunks": 7} | more
    return plan_scenes(parse_scenes(text), num_chunks=num_chunks, **options)


@pytest.mark.parametrize(
    ("seconds", "chunks"),
    # 16 fps and 3 latent frames of 4 frames each: a chunk is 0.75 s
    [("0.1", 1), ("1", 1), ("1.125", 2), ("2", 3), ("5", 7), ("8", 11), ("10", 13), ("12", 16)],
)
def test_a_duration_becomes_the_nearest_whole_number_of_chunks(seconds: str, chunks: int) -> None:
    """Rounding down makes every scene shorter than it was asked for; 0 chunks would leave it out."""
    assert planned(f"a[{seconds}s] | b").scenes[1].start_chunk == chunks


def test_scenes_follow_each_other_and_the_video_ends_with_the_last() -> None:
    """A scene that starts a chunk late repeats the one before."""
    plan = planned("a[3s] | b[1.5s#] | c | d[3s#]")
    assert plan == VideoPlan(
        (
            PlannedScene("a", 0),
            PlannedScene("b", 4, True),
            PlannedScene("c", 6),
            PlannedScene("d", 13, True),
        ),
        17,
    )


def test_the_example_of_the_guide_is_as_long_as_the_guide_says() -> None:
    """Someone counts 44.25 s where the guide promises three times 15, and looks for a fault."""
    guide = Path(__file__).parents[2].joinpath("docs", "generate.md").read_text()
    (prompt,) = re.findall(r'--prompt "(.* \| .*)"', guide)
    plan = planned(prompt, fps=8)
    num_frames = plan.first_frame(plan.num_chunks, 3)
    starts = [plan.first_frame(scene.start_chunk, 3) for scene in plan.scenes]
    assert (num_frames, starts, num_frames / 8) == (3 * 120 - 3 - 3, [0, 120 - 3, 240 - 3 - 3], 44.25)
    said = " ".join(guide.split())
    assert "354 frames remain, 44.25 s at 8 fps. The scenes begin at frames 0, 117 and 234." in said


def test_a_cut_before_the_first_scene_is_no_cut() -> None:
    """There is nothing to forget, and the frame count would be wrong."""
    assert planned("a[3s#] | b[3s]").scenes[0] == PlannedScene("a", 0)


@pytest.mark.parametrize("num_chunks", [5, 8, 50])
def test_with_a_given_length_the_last_scene_ends_there(num_chunks: int) -> None:
    """The video would be as long as the durations say and not as asked for."""
    plan = planned("a[3s] | b[3s]", num_chunks)
    assert (plan.num_chunks, plan.scenes[1].start_chunk) == (num_chunks, 4)
    assert planned("a[3s] | b", num_chunks) == plan


def test_a_scene_that_would_never_start_is_an_error() -> None:
    """It would be left out of the video without a word."""
    with pytest.raises(ConfigError, match=r"scene 2 \('b'\) would start at 3 s, but the video ends at 3 s"):
        planned("a[3s] | b[3s]", 4)


def test_with_a_given_length_only_the_last_scene_may_be_open() -> None:
    """The rest of the time can't be shared out between two."""
    with pytest.raises(ConfigError, match=r"scene 1 \('a'\) has no duration"):
        planned("a | b[3s]", 9)


def test_frames_are_counted_from_each_cut() -> None:
    """4 (T - 1) + 1 frames for each piece between cuts; the marks on a contact sheet depend on it."""
    plan = planned("a[2.25s] | b[1.5s#] | c[0.75s] | d[0.75s#]")
    assert [scene.start_chunk for scene in plan.scenes] == [0, 3, 5, 6]
    pieces = [9, 3 * 3, 3]  # latent frames between cuts
    total = sum(4 * (latent_frames - 1) + 1 for latent_frames in pieces)
    assert plan.first_frame(plan.num_chunks, 3) == total
    assert [plan.first_frame(scene.start_chunk, 3) for scene in plan.scenes] == [0, 33, 33 + 21, 33 + 33]
    assert plan.first_frame(0, 3, num_given=6) == 21
    assert plan.first_frame(plan.num_chunks, 3, num_given=6) == total + 24
