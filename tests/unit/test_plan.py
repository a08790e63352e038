"""Derived numbers checked by hand, and rules between sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from astrolabe_ray.config.loader import load
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.errors import ConfigError

TINY = f"{Path(__file__).parents[2] / 'configs' / 'nft_tiny.py'}:tiny_sprites"
WINDOW_OF_3 = ["algorithm.train_window_frames=3"]


def test_derived_numbers_are_those_computed_by_hand() -> None:
    """A wrong derived number sizes buffers and schedules wrongly without any error."""
    plan = make_plan(
        load(
            TINY,
            [
                "rollout.num_groups=3",
                "rollout.group_size=6",
                "rollout.batch_size=2",
                "rollout.max_policy_age=2",
                "learner.num_ranks=4",
                "model.height=64",
                "model.width=48",
                "evaluation.num_prompts=5",
                "evaluation.rollouts_per_prompt=3",
            ],
        )
    )
    assert plan.num_frames == 33  # 4 * (9 - 1) + 1
    assert plan.num_chunks == 3
    assert plan.latent_shape == (9, 8, 6)
    assert plan.tokens_per_latent_frame == 12  # 4 x 3
    assert plan.num_rollouts == 18
    assert plan.requests_per_group == 3
    assert plan.samples_per_rank == 5  # 18 over 4 ranks: 5, 5, 4, 4
    assert plan.max_groups_in_flight == 9
    assert plan.eval_rollouts == 15


def test_a_window_shortens_rollouts_and_what_is_scored() -> None:
    """The object store would be asked for whole videos that nobody makes."""
    plan = make_plan(load(TINY, [*WINDOW_OF_3, "algorithm.window_start=3"]))
    assert (plan.num_frames, plan.num_scored_frames, plan.sampled_latent_frames) == (33, 12, 6)
    whole = make_plan(load(TINY))
    assert (whole.num_frames, whole.num_scored_frames, whole.sampled_latent_frames) == (33, 33, 9)


def test_needs_count_every_process_that_a_run_starts() -> None:
    """A process left out makes the run hang in a pending placement."""
    plan = make_plan(
        load(
            TINY,
            [
                "rollout.min_actors=2",
                "rollout.max_actors=4",
                "rollout.num_cpus=1",
                "rollout.num_gpus=1",
                "learner.num_ranks=3",
                "learner.num_cpus=2",
                "learner.num_gpus=1",
                "rewards.0.min_replicas=2",
                "rewards.0.max_replicas=2",
                "rewards.0.num_cpus=0.5",
                "rewards.0.num_gpus=0.5",
                "rewards.1.num_cpus=0",
                "rewards.2.num_cpus=0",
            ],
        )
    )
    assert plan.num_cpus == 2 * 1 + 3 * 2 + 2 * 0.5
    assert plan.num_gpus == 2 + 3 + 2 * 0.5


def test_the_demo_fits_two_cores() -> None:
    """`make demo` would wait for a third core for ever."""
    assert make_plan(load(TINY)).num_cpus <= 2
    assert make_plan(load(TINY + "_two_ranks")).num_cpus <= 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.batch_size=3"],
            "rollout.batch_size 3 does not divide rollout.group_size 8. "
            "Try --config.rollout.batch_size=2 or 4.",
        ),
        (["model.height=50"], "Try --config.model.height=48 or 64."),
        (["model.width=8"], "Try --config.model.width=16."),
        (["model.window_frames=3"], "Try --config.model.window_frames=4."),
        (["model.num_latent_frames=10"], "Try --config.model.num_latent_frames=9 or 12."),
        (["model.denoising_steps=250,500"], "must fall from at most 1000 to above 0"),
        (["model.denoising_steps=1000,1000,500"], "each only once"),
        (["model.denoising_steps=1000,0"], "must fall from at most 1000 to above 0"),
        (["model.denoising_steps=[]"], "must fall from at most 1000 to above 0"),
        (["learner.num_ranks=65"], "Try --config.learner.num_ranks=64."),
        (["algorithm.timesteps_per_sample=5"], "Try --config.algorithm.timesteps_per_sample=4."),
        (["rollout.min_actors=3"], "Try --config.rollout.max_actors=3."),
        (["rewards.1.min_replicas=2"], "Try --config.rewards.1.max_replicas=2."),
        (["rewards.0.key=image_quality"], "rewards names 'image_quality' 2 times"),
        (["rewards=()"], "rewards is empty"),
        (["learner.step_timeout_s=3000"], "Try --config.cluster.stall_timeout_s=4000."),
        (["cluster.stall_timeout_s=1800"], "not more than learner.step_timeout_s 1800, so a healthy run"),
        (["rewards.1.request_timeout_s=2400"], "rewards.1.request_timeout_s 2400"),
        (["algorithm.main_reward=tiny_clip"], "has no effect with kl_samples=all"),
        (["algorithm.kl_samples=disagreeing"], "Try --config.algorithm.main_reward=tiny_clip."),
        (
            ["algorithm.kl_samples=disagreeing", "algorithm.main_reward=tiny_clip", "algorithm.kl_coef=0"],
            "kl_samples=disagreeing has no effect with algorithm.kl_coef 0. "
            "Try --config.algorithm.kl_coef=0.0001.",
        ),
        (
            ["algorithm.kl_reference=lagging", "algorithm.kl_coef=0"],
            "kl_reference=lagging has no effect with algorithm.kl_coef 0.",
        ),
        (["algorithm.window_start=3"], "Try --config.algorithm.train_window_frames=3."),
        (["algorithm.train_window_frames=4"], "Try --config.algorithm.train_window_frames=3 or 6."),
        (["algorithm.train_window_frames=12"], "Try --config.algorithm.train_window_frames=9."),
        ([*WINDOW_OF_3, "algorithm.window_start=4"], "Try --config.algorithm.window_start=3 or 6."),
        ([*WINDOW_OF_3, "algorithm.window_start=9"], "Try --config.algorithm.window_start=6."),
        ([*WINDOW_OF_3, "algorithm.window_start=-3"], "Try --config.algorithm.window_start=6."),
        ([*WINDOW_OF_3, "algorithm.clean_context=false"], "Try --config.algorithm.clean_context=true."),
        (["evaluation.num_latent_frames=5"], "Try --config.evaluation.num_latent_frames=3 or 6."),
        ([f"rewards.{index}.weight=0" for index in range(3)], "every reward has weight 0"),
    ],
)
def test_options_that_contradict_each_other_say_a_way_out(overrides: list[str], message: str) -> None:
    """The contradiction would show minutes later, inside a worker."""
    with pytest.raises(ConfigError) as caught:
        make_plan(load(TINY, overrides))
    assert message in str(caught.value)


def test_values_on_the_edge_of_a_rule_are_accepted() -> None:
    """A rule that is one too strict refuses runs that work."""
    make_plan(
        load(
            TINY,
            [
                "model.window_frames=4",
                "learner.num_ranks=64",
                "algorithm.timesteps_per_sample=4",
                "algorithm.train_window_frames=6",
                "algorithm.window_start=3",
            ],
        )
    )


def test_every_broken_rule_gets_its_line() -> None:
    """People would have to run once per mistake."""
    with pytest.raises(ConfigError) as caught:
        make_plan(load(TINY, ["model.height=50", "rollout.batch_size=3"]))
    assert len(str(caught.value).splitlines()) == 2


def test_rewards_of_one_server_must_agree_about_it() -> None:
    """One of two numbers of replicas would be ignored in silence."""
    keys = ["rewards.0.key=videoalign_ta_score", "rewards.1.key=videoalign_mq_score"]
    plan = make_plan(load(TINY, keys))
    assert [need.reward for need in plan.needs if need.reward] == ["videoreward", "image_quality"]
    with pytest.raises(ConfigError) as error:
        make_plan(load(TINY, [*keys, "rewards.1.num_gpus=0.5", "rewards.1.weight=7"]))
    assert str(error.value) == (
        "rewards.1.num_gpus 0.5 (videoalign_mq_score) differs from 0.0 of videoalign_ta_score, and both come "
        "from one server. Try --config.rewards.1.num_gpus=0.0."
    )
