"""What a training group asks rollout actors for."""

from __future__ import annotations

import pytest

from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import AlgorithmConfig, ModelConfig, RewardConfig, RolloutConfig, RunConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.group_requests import group_requests


def config(group_sampling: str = "clip", **algorithm: object) -> RunConfig:
    return RunConfig(
        name="run",
        model=ModelConfig(num_latent_frames=12),
        rollout=RolloutConfig.model_validate(
            {"group_size": 6, "batch_size": 2, "num_groups": 3, "group_sampling": group_sampling}
        ),
        rewards=(RewardConfig(key="tiny_clip"),),
        algorithm=AlgorithmConfig.model_validate({"train_window_frames": 6} | algorithm),
    )


def test_a_group_of_clips_is_one_request_with_a_seed_for_each_and_one_for_their_history() -> None:
    """Two requests would make two histories, and equal seeds two equal clips."""
    seeds: list[int] = []
    for number in range(6):
        (request,) = group_requests(config(), number, "any", ())
        assert request.prefix_seed is not None
        assert (request.indices, request.window) == (tuple(range(6)), (6, 12))
        assert request.batch_size == 2
        assert request.num_payloads == 1 + 6
        assert group_requests(config(), number, "any", ()) == [request]  # made again after a loss
        seeds += [request.prefix_seed, *request.seeds]
    assert len(set(seeds)) == 6 * 7


def test_candidates_have_the_seeds_that_they_have_without_sharing() -> None:
    """An ablation of the sharing would also compare two draws of noise."""
    (clip,) = group_requests(config(), 4, "any", ())
    parts = group_requests(config("sequence"), 4, "any", ())
    assert [len(part.seeds) for part in parts] == [2, 2, 2]
    assert sum((part.seeds for part in parts), ()) == clip.seeds
    assert all(part.prefix_seed is None and part.num_payloads == 2 for part in parts)


def test_a_window_at_the_start_of_a_video_has_no_history_to_share() -> None:
    """An empty prefix would have to be sampled, sent and joined."""
    requests = group_requests(config(window_start=0), 0, "any", ())
    assert [(request.prefix_seed, request.window) for request in requests] == [(None, (0, 6))] * 3


def test_windows_of_groups_are_drawn_from_all_of_the_video() -> None:
    """The window's draw must be the group's own and not the prefix's, which is new in every group."""
    windows = {
        request.window
        for number in range(40)
        for request in group_requests(config(window_start="random"), number, "any", ())
    }
    assert windows == {(0, 6), (3, 9), (6, 12)}


@pytest.mark.parametrize(
    ("group_sampling", "algorithm", "option"),
    [
        ("clip", {"train_window_frames": None}, "rollout.group_sampling=clip"),
        (
            "sequence",
            {"train_window_frames": None, "detach_context": False},
            "algorithm.detach_context=false",
        ),
    ],
)
def test_options_about_the_frames_before_a_window_need_one(
    group_sampling: str, algorithm: dict, option: str
) -> None:
    """A run would train on whole videos, and its name say something else."""
    with pytest.raises(ConfigError, match=f"{option} .*--config.algorithm.train_window_frames=3"):
        make_plan(config(group_sampling, **algorithm))
