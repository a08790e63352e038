"""Which frames of a rollout are trained on."""

from __future__ import annotations

from collections import Counter

import pytest

from astrolabe_ray.config.schema import (
    AlgorithmConfig,
    EvaluationConfig,
    ModelConfig,
    RewardConfig,
    RunConfig,
)
from astrolabe_ray.config.train_window import evaluation_frames, longest_rollout, train_window, window_frames
from astrolabe_ray.data.group_sampler import group_seed


def config(num_latent_frames: int = 12, **algorithm: object) -> RunConfig:
    return RunConfig(
        name="run",
        rewards=(RewardConfig(key="any"),),
        model=ModelConfig(num_latent_frames=num_latent_frames),
        algorithm=AlgorithmConfig.model_validate(algorithm),
    )


@pytest.mark.parametrize(
    ("algorithm", "window", "longest"),
    [
        ({}, (0, 12), 12),
        ({"train_window_frames": 6}, (6, 12), 12),
        ({"train_window_frames": 6, "window_start": 3}, (3, 9), 9),
        ({"train_window_frames": 6, "window_start": 0}, (0, 6), 6),
        ({"train_window_frames": 12, "window_start": "random"}, (0, 12), 12),
    ],
)
def test_a_window_is_where_the_config_says(algorithm: dict, window: tuple[int, int], longest: int) -> None:
    """Frames behind the window would be sampled for nothing, frames before it scored."""
    c = config(**algorithm)
    assert {train_window(c, seed) for seed in range(5)} == {window}
    assert (window_frames(c), longest_rollout(c)) == (window[1] - window[0], longest)


def test_drawn_windows_start_at_every_chunk_equally_often() -> None:
    """The last start left out, or starts within a chunk. 900 draws of 3 starts: 300 +- 14 each."""
    c = config(train_window_frames=6, window_start="random")
    windows = Counter(
        train_window(c, group_seed(7, step, group)) for step in range(90) for group in range(10)
    )
    assert windows.keys() == {(0, 6), (3, 9), (6, 12)}
    assert all(240 < count < 360 for count in windows.values())
    assert longest_rollout(c) == 12


def test_held_out_videos_have_a_length_of_their_own() -> None:
    """Evaluating videos of a minute would take longer than training on their windows."""
    assert evaluation_frames(config()) == 12
    c = config().model_copy(update={"evaluation": EvaluationConfig(num_latent_frames=6)})
    assert evaluation_frames(c) == 6
