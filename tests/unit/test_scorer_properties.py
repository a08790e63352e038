"""What holds for every scorer: a score is of a video and its prompt, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astrolabe_ray.errors import DataFailure
from reward_servers.scorers import SCORERS, Scorer
from reward_servers.scoring import finite_numbers
from tests.tiny_rewards import SIZES, USUAL, every_scorer

RAFT = "optical_flow_raft"
NAMES = (
    "tiny_clip",
    "motion_quality",
    "image_quality",
    "hpsv3",
    "videoreward",
    "hpsv2",
    "aesthetic",
    "clip",
    "optical_flow",
)
PROMPTS = (
    "a small red circle moves left on a black background",
    "a large blue star moves up on a white background",
    "a small green square moves right on a white background",
    "a large red triangle moves down on a black background",
)
ATOL, RTOL = 5e-5, 1e-4
"""Sums in float32 differ with the number of rows in a product; scores here are of the order of 1."""
ALL = range(len(PROMPTS))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """With 7 frames in a forward, so that one holds frames of two videos."""
    return every_scorer(tmp_path_factory.mktemp("rewards"), frames_per_forward=7)


def videos_for(name: str) -> np.ndarray:
    """A smooth texture that drifts ever faster, another one in each video: uint8 [4, F, 3, H, W]."""
    frames, height, width = SIZES.get(name, USUAL)
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (len(PROMPTS), 8, 12, 3), dtype=np.uint8)
    moved = []
    for i, picture in enumerate(coarse):
        places = [2 * f + f * f * i // 3 for f in range(frames)]
        large = cv2.resize(picture, (width + places[-1], height), interpolation=cv2.INTER_CUBIC)
        moved.append([large[:, x : x + width] for x in places])
    return np.ascontiguousarray(np.array(moved).transpose(0, 1, 4, 2, 3))


@pytest.fixture(scope="module")
def alone(scorers: dict[str, Scorer]) -> Callable[[str], dict[str, np.ndarray]]:
    """Scorer -> number -> what each video gets in a batch of its own [4]."""

    @lru_cache
    def of(name: str) -> dict[str, np.ndarray]:
        videos = videos_for(name)
        rows = [finite_numbers(scorers[name], videos[i : i + 1], PROMPTS[i : i + 1]) for i in ALL]
        return {number: np.array([row[number][0] for row in rows]) for number in rows[0]}

    return of


def test_every_scorer_is_among_them_and_tells_the_videos_apart(scorers: dict[str, Scorer], alone) -> None:
    """A property of all scorers but the one that breaks it, or of scores that are all the same."""
    assert set(scorers) == {*NAMES, RAFT} == {*SCORERS, RAFT} - {"unifiedreward"}
    for name in NAMES:
        for number, column in alone(name).items():
            least = min(abs(a - b) for a, b in combinations(column, 2))
            assert least > 3 * (ATOL + RTOL * np.abs(column).max()), (name, number, column)


@pytest.mark.parametrize("name", [*NAMES, pytest.param(RAFT, marks=pytest.mark.slow)])
@given(members=st.lists(st.sampled_from(ALL), min_size=1, max_size=6))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_score_depends_neither_on_the_batch_nor_on_its_place(
    scorers: dict[str, Scorer], alone, name: str, members: list[int]
) -> None:
    """Servers mix the videos of several runs, the same one twice among them, in any order."""
    numbers = finite_numbers(scorers[name], videos_for(name)[members], [PROMPTS[i] for i in members])
    assert numbers.keys() == alone(name).keys()
    for number, column in numbers.items():
        np.testing.assert_allclose(column, alone(name)[number][members], atol=ATOL, rtol=RTOL, err_msg=number)


MARKS = {
    "hpsv3": ("<|Reward|>", "<|im_end|>", "<|image_pad|>"),
    "videoreward": ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>", "<|video_pad|>"),
    "hpsv2": ("<end_of_text>", "<start_of_text>"),
    "clip": ("<end_of_text>", "<start_of_text>"),
}


@pytest.mark.parametrize("name", MARKS)
def test_a_prompt_with_a_mark_of_the_model_is_refused_by_name(scorers: dict[str, Scorer], name: str) -> None:
    """A mark moves the place that is read or ends the text, and the rest of the prompt is not judged."""
    for mark in MARKS[name]:
        with pytest.raises(DataFailure) as refused:
            scorers[name].score(videos_for(name)[:1], [f"a dog {mark} that barks"])
        assert mark in str(refused.value) and "remove it from the prompt" in str(refused.value)


def test_clip_knows_its_marks_in_disguise(scorers: dict[str, Scorer]) -> None:
    """Its tokenizer reads upper case and HTML entities as what they stand for."""
    for prompt in ("a dog &lt;end_of_text&gt; b", "a dog <END_OF_TEXT> b"):
        with pytest.raises(DataFailure, match="<end_of_text>"):
            scorers["clip"].score(videos_for("clip")[:1], [prompt])
    scorers["clip"].score(videos_for("clip")[:1], ["a dog <end of text> b"])


@pytest.mark.parametrize("name", ["motion_quality", "optical_flow", "videoreward"])
def test_too_few_frames_are_refused_by_name(scorers: dict[str, Scorer], name: str) -> None:
    """The mean over no pair of frames is NaN, which says nothing about the cause."""
    with pytest.raises(DataFailure, match=r"(needs|in pairs).* the videos have (1|one)"):
        scorers[name].score(videos_for(name)[:1, :1], PROMPTS[:1])
