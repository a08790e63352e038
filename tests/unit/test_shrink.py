"""A shrunk run keeps its shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from astrolabe_ray.config.loader import load, presets_in
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RewardConfig, RunConfig
from astrolabe_ray.config.shrink import shrink
from astrolabe_ray.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = [f"{file.name}:{name}" for file in sorted(CONFIGS.glob("*.py")) for name in presets_in(file)]


def small(spec: str) -> RunConfig:
    return shrink(load(f"{CONFIGS / spec}"))[0]


@pytest.mark.parametrize("spec", PRESETS)
def test_every_shrunk_preset_fits_two_cores_without_files(spec: str) -> None:
    """A real path or a GPU left in it would end the run on a laptop."""
    config = small(spec)
    plan = make_plan(config)
    assert plan.num_gpus == 0
    assert plan.num_cpus <= 2
    files = (config.model.path, config.data.train_prompts, config.data.heldout_prompts)
    assert all(file.startswith("builtin:") for file in files)
    assert (config.model.checkpoint, config.model.checkpoint_key, config.model.lora_init) == (None,) * 3
    assert plan.num_rollouts <= 8 and plan.num_frames <= 105


def test_structure_and_algorithm_stay() -> None:
    """A small run of another algorithm says nothing about the real one."""
    real = load(f"{CONFIGS / 'nft_longlive.py:longlive_video_hpsv3'}")
    config = small("nft_longlive.py:longlive_video_hpsv3")
    m = config.model
    assert (m.chunk_frames, m.sink_frames, m.rope) == (3, 3, "absolute")
    assert m.denoising_steps == (1000, 750, 500, 250)
    assert (m.num_latent_frames, m.window_frames) == (9, 6)  # 3 of 7 chunks; the window still evicts
    assert config.algorithm == real.algorithm
    assert (config.learner.lr, config.learner.zero_stage) == (1e-5, 1)
    assert config.learner.gradient_checkpointing
    assert config.lora.alpha / config.lora.rank == real.lora.alpha / real.lora.rank
    assert (config.seed, config.name) == (42, "longlive_video_hpsv3")
    assert small("nft_krea14b.py:krea14b_video_hpsv3").learner.zero_stage == 3
    assert small("nft_casual_forcing.py:casual_forcing_framewise_video_hpsv3").model.chunk_frames == 1


def test_each_reward_gets_a_scorer_of_its_own_with_its_weight() -> None:
    """Two rewards on one scorer would be one reward."""
    config = small("nft_casual_forcing.py:casual_forcing_video_hpsv3_ta_48gpu")
    assert {r.key: r.weight for r in config.rewards} == {"image_quality": 0.1, "tiny_clip": 1.0}
    rewards = (RewardConfig(key="videoalign_vq_score", weight=2), RewardConfig(key="video_hpsv3_local"))
    both, notes = shrink(RunConfig(name="both", rewards=rewards))
    assert [(r.key, r.weight) for r in both.rewards] == [("image_quality", 2), ("motion_quality", 1)]
    assert "motion_quality for video_hpsv3_local" in notes


def test_a_window_of_a_long_video_stays_one() -> None:
    """80 chunks, 7 of them trained on from the eighth on, 20 evaluated: 9, 3 from the fourth on, 5."""
    config = small("nft_longlive.py:longlive_video_hpsv3_streaming_with_lora_init")
    a = config.algorithm
    found = (config.model.num_latent_frames, a.train_window_frames, a.window_start)
    assert (*found, config.evaluation.num_latent_frames) == (27, 9, 9, 15)
    late = load(
        f"{CONFIGS / 'nft_longlive.py:longlive_video_hpsv3_streaming_with_lora_init'}",
        ["algorithm.window_start=219"],
    )
    assert shrink(late)[0].algorithm.window_start == 18  # the last window


def test_the_main_reward_follows_its_stand_in() -> None:
    """Its ranking would be compared with a reward that is not there."""
    config = small("nft_longlive.py:longlive_video_hpsv3_gardo")
    assert config.algorithm.main_reward == "image_quality"
    assert config.algorithm.kl_samples == "disagreeing"


def test_a_lora_that_is_left_out_is_named() -> None:
    """A run that claims to start from a LoRA must say when it does not."""
    _, notes = shrink(load(f"{CONFIGS / 'nft_longlive.py:longlive_video_hpsv3_with_lora_init'}"))
    assert any("lora.pt" in note for note in notes)


def test_more_rewards_than_scorers_are_refused() -> None:
    """One of them would go missing."""
    rewards = tuple(RewardConfig(key=f"r{i}") for i in range(4))
    with pytest.raises(ConfigError, match="too few for the rewards r0, r1, r2, r3"):
        shrink(RunConfig(name="many", rewards=rewards))
