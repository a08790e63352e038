"""Scorers against videos whose order, or exact score, is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from astrolabe_ray.data.sprites.captions import SpriteCaption, heldout_captions
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import ConfigError, DataFailure
from reward_servers.scorers import SCORERS, Scorer, ScorerSetup, card_of, load_scorer

EMBEDDED = ("tiny_clip", "motion_quality", "image_quality")
F, SIZE = 33, 32


@pytest.fixture(scope="module")
def scorers() -> dict[str, Scorer]:
    return {key: load_scorer(key, ScorerSetup()) for key in EMBEDDED}


@pytest.fixture(scope="module")
def captions() -> Sequence[SpriteCaption]:
    return heldout_captions()[:16]


@pytest.fixture(scope="module")
def clips(captions: Sequence[SpriteCaption]) -> np.ndarray:
    return render_clips(captions, seed=77)


def disc(xs: Sequence[float], *, radius: float = 5.0) -> np.ndarray:
    """A white disc with soft edges on black, its centre at (x, 16) in each frame; uint8 [F, 3, 32, 32]."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    frames = [np.clip(radius + 0.5 - np.hypot(columns - x, rows - 16), 0, 1) for x in xs]
    return np.repeat((255 * np.stack(frames)).astype(np.uint8)[:, None], 3, axis=1)


def one(scorer: Scorer, video: np.ndarray, prompt: str = "") -> float:
    (scores,) = scorer.score(viewed(scorer, video)[None], [prompt]).values()
    return float(scores[0])


def viewed(scorer: Scorer, video: np.ndarray) -> np.ndarray:
    """Evenly spaced frames, as the scorer wants them; the pictures have their size already."""
    name = next(key for key, place in SCORERS.items() if place.endswith(type(scorer).__name__))
    count = card_of(name).reading(name).frames.num_frames
    return video if count is None else video[np.linspace(0, len(video) - 1, count).round().astype(int)]


def test_a_score_does_not_depend_on_its_batch(scorers, clips, captions) -> None:
    """Servers put videos of different runs into one batch."""
    for key, scorer in scorers.items():
        videos = np.stack([viewed(scorer, clip) for clip in clips])
        prompts = [str(caption) for caption in captions]
        together = scorer.score(videos, prompts)[key]
        alone = [scorer.score(videos[i : i + 1], prompts[i : i + 1])[key][0] for i in range(len(videos))]
        assert together.dtype == np.float32 and together.shape == (len(videos),)
        np.testing.assert_allclose(together, alone, atol=2e-5, err_msg=key)


def test_tiny_clip_prefers_the_caption_that_the_clip_was_drawn_from(scorers, clips, captions) -> None:
    """A reward for text alignment that ignores the text rewards anything."""
    scorer = scorers["tiny_clip"]
    videos = np.stack([viewed(scorer, clip) for clip in clips])
    right = scorer.score(videos, [str(caption) for caption in captions])["tiny_clip"]
    for attribute, others in {
        "size": ("small", "large"),
        "colour": ("red", "green", "blue"),
        "shape": ("circle", "square", "triangle", "star"),
        "background": ("black", "white"),
    }.items():
        wrong = [next(o for o in others if o != getattr(caption, attribute)) for caption in captions]
        prompts = [
            str(c.__class__(**(vars(c) | {attribute: w}))) for c, w in zip(captions, wrong, strict=True)
        ]
        assert right.mean() > scorer.score(videos, prompts)["tiny_clip"].mean() + 0.05, attribute
    assert right.mean() > 0.85


def test_tiny_clip_refuses_what_is_no_caption_of_its_world(scorers, clips) -> None:
    """It would score against nothing and return a number all the same."""
    with pytest.raises(DataFailure, match="a cat on a sofa"):
        one(scorers["tiny_clip"], clips[0], "a cat on a sofa")


def test_motion_quality_of_a_still_video_is_zero(scorers) -> None:
    """Rewarding stills is how a video model forgets to move."""
    assert one(scorers["motion_quality"], disc([16.0] * F)) == 0.0


def test_motion_quality_follows_its_formula_for_a_steady_disc(scorers) -> None:
    """speed: 2 frames of 0.5 px at half size = 1/(32 sqrt 2) diagonals in two frames, presence
    1 - exp(-(0.5 / 45.25) / 0.02) = 0.42; coherence and steadiness are below 1 and near it."""
    score = one(scorers["motion_quality"], disc(8 + 0.5 * np.arange(F)))
    assert 0.5 * 0.42 < score < 1.15 * 0.42


def test_motion_quality_prefers_steady_motion_to_what_only_changes(scorers) -> None:
    """A reward for change alone is won by flicker and noise."""
    scorer, rng = scorers["motion_quality"], np.random.default_rng(0)
    steady = one(scorer, disc(8 + 0.5 * np.arange(F)))
    slow = one(scorer, disc(12 + 0.2 * np.arange(F)))
    to_and_fro = one(scorer, disc(16 + 1.0 * (np.arange(F) // 2 % 2)))
    noise = one(scorer, rng.integers(0, 256, (F, 3, SIZE, SIZE), dtype=np.uint8))
    flicker = one(scorer, (disc([16.0] * F) * (np.arange(F) // 2 % 2)[:, None, None, None]).astype(np.uint8))
    jumping = one(scorer, disc(rng.permutation(8 + 0.5 * np.arange(F))))
    assert steady > slow > 0.05
    assert steady > 1.2 * max(to_and_fro, noise, flicker, jumping)


def test_image_quality_is_one_for_a_clean_sharp_square_and_zero_for_nothing(scorers) -> None:
    """contrast 1, gradient = range, no roughness in the flat half: each factor is exactly 1."""
    square = np.zeros((F, 3, SIZE, SIZE), np.uint8)
    assert one(scorers["image_quality"], square) == 0.0
    square[:, :, 8:24, 8:24] = 255
    assert one(scorers["image_quality"], square) == pytest.approx(1.0)
    faint = square // 255 * 38  # a range of 38 / 255 = 0.149 is half of full contrast
    assert one(scorers["image_quality"], faint) == pytest.approx(38 / 255 / 0.3, rel=1e-4)


def test_image_quality_falls_with_blur_and_with_noise(scorers, clips) -> None:
    """A model can win the other rewards with smears or grain."""
    scorer, rng = scorers["image_quality"], np.random.default_rng(0)
    clean = np.mean([one(scorer, clip) for clip in clips])
    kernel = np.ones(5) / 5
    blurred = np.apply_along_axis(np.convolve, -1, clips.astype(float), kernel, mode="same")
    blurred = np.apply_along_axis(np.convolve, -2, blurred, kernel, mode="same").clip(0, 255).astype(np.uint8)
    noisy = np.clip(clips + rng.normal(0, 12, clips.shape), 0, 255).astype(np.uint8)
    assert clean > 0.95
    assert np.mean([one(scorer, clip[:, :, 3:-3, 3:-3]) for clip in blurred]) < 0.8 * clean
    assert np.mean([one(scorer, clip) for clip in noisy]) < 0.3 * clean


def plain_image_quality(picture: np.ndarray) -> float:
    """The formula for one picture float32 [3, H, W] in 0..1, pixel after pixel; steps of an 8-bit picture are
    often equal, so whether one is below the median hangs on its rounding."""
    lows, highs = np.percentile(picture.reshape(3, -1), [1, 99], axis=1)
    plane = picture[int(np.argmax(highs - lows))]
    spread = float(np.max(highs - lows))
    gradients, laplacians = [], []
    for row in range(1, plane.shape[0] - 1):
        for column in range(1, plane.shape[1] - 1):
            around = [plane[row - 1, column], plane[row + 1, column]]
            around += [plane[row, column - 1], plane[row, column + 1]]
            gradients.append(max(abs(value - plane[row, column]) for value in around))
            laplacians.append(abs(sum(around) - 4 * plane[row, column]))
    middle = np.median(gradients)
    noise = np.mean([rough for rough, steep in zip(laplacians, gradients, strict=True) if steep <= middle])
    sharpness = min(1.0, float(np.percentile(gradients, 99)) / (0.5 * spread))
    return min(1.0, spread / 0.3) * sharpness * float(np.exp(-noise / 0.02))


@pytest.mark.parametrize("size", [(9, 16), (240, 190)])
def test_image_quality_follows_its_formula(scorers, size: tuple[int, int]) -> None:
    """Small pictures are looked at many at a time, large ones alone."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    waves = [np.sin(rows / 3 + columns / (2 + i)) * 60 * (i + 1) / 3 + 100 for i in range(3)]
    video = np.clip(np.stack(waves) + rng.normal(0, 3, (4, 3, *size)), 0, 255).astype(np.uint8)
    expected = np.mean([plain_image_quality(picture / np.float32(255)) for picture in video])
    assert 0.02 < expected < 0.9
    assert one(scorers["image_quality"], video) == pytest.approx(expected, rel=1e-4)


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    """A typo in a preset should not cost a cluster's time."""
    with pytest.raises(ConfigError, match="did you mean 'tiny_clip'"):
        card_of("tinyclip")
