"""What every shipped preset trains, typed by hand, and what follows from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.loader import load, presets_in
from astrolabe_ray.config.nft_recipes import HPSV3, krea, wan
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
KEYS = {"H": "video_hpsv3_local", "MQ": "videoalign_mq_score", "TA": "videoalign_ta_score"}
LORA = "checkpoints/longlive_models/models/lora.pt"

TABLE = """
# preset, GPUs, rewards, group size, groups, batch, KL, learning rate, evaluation every, latent frames, LoRA
self_forcing_video_hpsv3                        8  H           24  16  3  1e-4  1e-5  10   21  -
self_forcing_video_multi_reward                 8  H+MQ        24  16  3  1e-4  1e-5  10   21  -
self_forcing_video_hpsv3_16gpu                 16  H           16  16  2  1e-3  1e-5  30   21  -
self_forcing_video_multi_reward_16gpu          16  H+MQ        16  16  2  1e-3  1e-5  30   21  -
self_forcing_video_hpsv3_24gpu                 24  H           24  48  4  1e-3  1e-5  30   21  -
self_forcing_video_multi_reward_24gpu          24  H+MQ        24  48  4  1e-3  1e-5  30   21  -
self_forcing_video_hpsv3_48gpu                 48  H           24  48  4  1e-4  1e-5  10   21  -
self_forcing_video_multi_reward_48gpu          48  H+MQ        24  48  4  1e-4  1e-5  10   21  -
casual_forcing_video_hpsv3                      8  H           24  16  3  1e-4  1e-5  30   21  -
casual_forcing_video_multi_reward               8  H+MQ        24  16  3  1e-4  2e-5  30   21  -
casual_forcing_video_hpsv3_16gpu               16  H           16  16  2  1e-4  1e-5  10   21  -
casual_forcing_video_multi_reward_16gpu        16  H+MQ        16  16  2  1e-4  1e-5  10   21  -
casual_forcing_video_hpsv3_24gpu               24  H           24  48  4  1e-4  1e-5  10   21  -
casual_forcing_video_hpsv3_48gpu               48  H           24  48  4  1e-4  1e-5  30   21  -
casual_forcing_video_multireward_48gpu         48  H+MQ        24  48  4  5e-4  1e-5  30   21  -
casual_forcing_video_ta_48gpu                  48  TA          24  48  4  1e-4  2e-5  30   21  -
casual_forcing_video_hpsv3_mq_ta_48gpu         48  H+MQ+TA     24  48  4  1e-4  1e-5  30   21  -
casual_forcing_video_hpsv3_ta_48gpu            48  0.1*H+TA    24  48  4  1e-4  1e-5  30   21  -
longlive_video_hpsv3                            8  H           24  16  3  1e-4  1e-5  10   21  -
longlive_video_multi_reward                     8  H+MQ        24  16  3  1e-4  1e-5  10   21  -
longlive_video_mq                               8  MQ          24  16  3  1e-4  1e-5  20   21  -
longlive_video_long                             8  H           24  16  3  1e-4  1e-5  10   60  -
longlive_video_hpsv3_with_lora_init             8  H           24  16  3  1e-4  1e-5  10   21  lora
longlive_video_multi_reward_with_lora_init      8  H+MQ        24  16  3  1e-4  1e-5  10   21  lora
longlive_video_hpsv3_16gpu                     16  H           16  16  2  1e-4  1e-5  10   21  -
longlive_video_mq_16gpu                        16  MQ          16  16  2  1e-4  1e-5  20   21  -
longlive_video_multi_reward_16gpu              16  H+MQ        16  16  2  1e-4  1e-5  10   21  -
longlive_video_hpsv3_24gpu                     24  H           24  48  4  1e-4  1e-5  10   21  -
longlive_video_hpsv3_with_lora_init_24gpu      24  H           24  48  4  1e-4  1e-5  10   21  lora
longlive_video_hpsv3_48gpu                     48  H           24  48  4  1e-4  1e-5  30   21  -
longlive_video_multireward_48gpu               48  H+MQ        24  48  4  1e-4  1e-5  30   21  -
longlive_video_hpsv3_with_lora_init_48gpu      48  H           24  48  4  1e-4  1e-5  30   21  lora
longlive_video_hpsv3_streaming_with_lora_init   8  H           24  16  3  1e-4  1e-5  30  240  lora
longlive_video_hpsv3_gardo                      8  H+MQ        24  16  3  1e-4  1e-5  10   21  -
longlive_video_hpsv3_gardo_24gpu               24  H+MQ        24  48  4  1e-4  1e-5  10   21  -
longlive_video_hpsv3_gardo_48gpu               48  H+MQ        24  48  4  1e-4  1e-5  30   21  -
krea14b_video_hpsv3                             8  H            8   8  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward                      8  H+MQ         8   8  1  1e-4  1e-5  30   21  -
krea14b_video_hpsv3_16gpu                      16  H           16  16  1  1e-4  1e-5  30   21  -
krea14b_video_hpsv3_24gpu                      24  H           24  24  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward_24gpu               24  H+MQ        24  24  1  1e-4  1e-5  30   21  -
krea14b_video_hpsv3_48gpu                      48  H           16  48  1  1e-4  1e-5  30   21  -
# named by the release's README, absent from its code
longlive_video_hpsv3_with_lora_init_16gpu      16  H           16  16  2  1e-4  1e-5  10   21  lora
longlive_video_multi_reward_24gpu              24  H+MQ        24  48  4  1e-4  1e-5  10   21  -
longlive_video_multi_reward_48gpu              48  H+MQ        24  48  4  1e-4  1e-5  30   21  -
casual_forcing_video_multi_reward_48gpu        48  H+MQ        24  48  4  5e-4  1e-5  30   21  -
krea14b_video_multi_reward_16gpu               16  H+MQ        16  16  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward_48gpu               48  H+MQ        16  48  1  1e-4  1e-5  30   21  -
# ours: frame by frame, and few GPUs
casual_forcing_framewise_video_hpsv3            8  H           24  16  3  1e-4  1e-5  30   21  -
casual_forcing_framewise_video_multi_reward     8  H+MQ        24  16  3  1e-4  1e-5  30   21  -
self_forcing_video_hpsv3_1gpu                   1  H            8   6  1  1e-4  1e-5  10   21  -
self_forcing_video_hpsv3_2gpu                   2  H           12   8  3  1e-4  1e-5  10   21  -
self_forcing_video_hpsv3_4gpu                   4  H           24   8  3  1e-4  1e-5  10   21  -
longlive_video_hpsv3_1gpu                       1  H            8   6  1  1e-4  1e-5  10   21  -
longlive_video_hpsv3_2gpu                       2  H           12   8  3  1e-4  1e-5  10   21  -
longlive_video_hpsv3_4gpu                       4  H           24   8  3  1e-4  1e-5  10   21  -
longlive_video_multi_reward_1gpu                1  H+MQ         8   6  1  1e-4  1e-5  10   21  -
longlive_video_multi_reward_2gpu                2  H+MQ        12   8  3  1e-4  1e-5  10   21  -
longlive_video_multi_reward_4gpu                4  H+MQ        24   8  3  1e-4  1e-5  10   21  -
self_forcing_video_multi_reward_1gpu            1  H+MQ         8   6  1  1e-4  1e-5  10   21  -
self_forcing_video_multi_reward_2gpu            2  H+MQ        12   8  3  1e-4  1e-5  10   21  -
self_forcing_video_multi_reward_4gpu            4  H+MQ        24   8  3  1e-4  1e-5  10   21  -
casual_forcing_video_hpsv3_1gpu                 1  H            8   6  1  1e-4  1e-5  30   21  -
casual_forcing_video_hpsv3_2gpu                 2  H           12   8  3  1e-4  1e-5  30   21  -
casual_forcing_video_hpsv3_4gpu                 4  H           24   8  3  1e-4  1e-5  30   21  -
casual_forcing_video_multi_reward_1gpu          1  H+MQ         8   6  1  1e-4  2e-5  30   21  -
casual_forcing_video_multi_reward_2gpu          2  H+MQ        12   8  3  1e-4  2e-5  30   21  -
casual_forcing_video_multi_reward_4gpu          4  H+MQ        24   8  3  1e-4  2e-5  30   21  -
krea14b_video_hpsv3_1gpu                        1  H            4   2  1  1e-4  1e-5  30   21  -
krea14b_video_hpsv3_2gpu                        2  H            8   2  1  1e-4  1e-5  30   21  -
krea14b_video_hpsv3_4gpu                        4  H            8   4  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward_1gpu                 1  H+MQ         4   2  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward_2gpu                 2  H+MQ         8   2  1  1e-4  1e-5  30   21  -
krea14b_video_multi_reward_4gpu                 4  H+MQ         8   4  1  1e-4  1e-5  30   21  -
"""


class Row(NamedTuple):
    """A line of the table."""

    name: str
    num_gpus: int
    rewards: dict[str, float]
    rollout: tuple[int, int, int]
    kl_coef: float
    lr: float
    eval_every: int
    num_latent_frames: int
    lora_init: str | None

    @property
    def file(self) -> str:
        return re.split("_video|_framewise", self.name)[0]


def row(line: str) -> Row:
    name, gpus, rewards, group_size, num_groups, batch, kl, lr, every, latents, lora = line.split()
    terms = [("*" + term).split("*")[-2:] for term in rewards.split("+")]
    return Row(
        name,
        int(gpus),
        {KEYS[key]: float(weight or 1) for weight, key in terms},
        (int(group_size), int(num_groups), int(batch)),
        float(kl),
        float(lr),
        int(every),
        int(latents),
        LORA if lora == "lora" else None,
    )


GOLDEN = [row(line) for line in TABLE.splitlines() if line and not line.startswith("#")]
every_preset = pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row.name)

# checkpoint, key in it, chunk, window, sink
FRAMEWISE = "checkpoints/casualforcing/framewise/causal_forcing.pt"
BASES = {
    "self_forcing": ("checkpoints/self_forcing_dmd.pt", "generator_ema", 3, None, 0),
    "causal_forcing": ("checkpoints/casualforcing/chunkwise/causal_forcing.pt", "generator", 3, None, 0),
    "causal_forcing_framewise": (FRAMEWISE, "generator_ema", 1, None, 0),
    "longlive": ("checkpoints/longlive_models/models/longlive_base.pt", "generator", 3, 12, 3),
    "krea14b": ("checkpoints/krea-realtime-video-14b.safetensors", None, 3, None, 0),
}


def preset(row: Row) -> RunConfig:
    return load(f"{CONFIGS / f'nft_{row.file}.py'}:{row.name}")


@every_preset
def test_a_preset_trains_what_its_name_meant_in_the_release(row: Row) -> None:
    """A value lost on the way into a recipe would train another run under a known name."""
    c = preset(row)
    assert {reward.key: reward.weight for reward in c.rewards} == row.rewards
    assert (c.rollout.group_size, c.rollout.num_groups, c.rollout.batch_size) == row.rollout
    assert (c.algorithm.kl_coef, c.learner.lr) == (row.kl_coef, row.lr)
    assert c.evaluation.every_steps == row.eval_every
    assert (c.model.num_latent_frames, c.model.lora_init) == (row.num_latent_frames, row.lora_init)
    a, o = c.algorithm, c.learner
    assert (a.nft_beta, a.adv_clip_max, a.advantage_std, a.old_policy_decay) == (0.1, 5, "global", "linear")
    assert (a.ema_decay, o.weight_decay, o.adam_betas, o.adam_eps) == (0.9, 1e-4, (0.9, 0.999), 1e-8)
    assert (o.max_grad_norm, c.seed, c.num_steps, c.checkpoint.every_steps) == (1, 42, 100_000, 30)
    assert (c.lora.rank, c.lora.alpha) == (256, 256)


@every_preset
def test_a_preset_aligns_the_model_that_it_is_named_after(row: Row) -> None:
    """The wrong checkpoint, or another window than the one it was distilled with, samples noise."""
    m = preset(row).model
    framewise = "_framewise" if "framewise" in row.name else ""
    assert m.base_model == row.file.replace("casual", "causal") + framewise
    found = (m.checkpoint, m.checkpoint_key, m.chunk_frames, m.window_frames, m.sink_frames)
    assert found == BASES[m.base_model]
    assert (m.height, m.width, m.timestep_shift, m.dtype) == (480, 832, 5.0, "bfloat16")
    assert m.denoising_steps == (1000, 750, 500, 250)


@every_preset
def test_a_preset_uses_exactly_its_number_of_gpus(row: Row) -> None:
    """One GPU more never starts on the cluster it is named for; one fewer idles."""
    plan = make_plan(preset(row))
    assert plan.num_gpus == pytest.approx(row.num_gpus)
    assert all(need.num_gpus > 0 for need in plan.needs)


def test_only_the_gardo_presets_choose_whose_kl_counts() -> None:
    """Selective KL in a plain preset would be another algorithm."""
    chosen = {row.name: preset(row).algorithm for row in GOLDEN}
    selective = {name: a.main_reward for name, a in chosen.items() if a.kl_samples == "disagreeing"}
    names = [f"longlive_video_hpsv3_gardo{scale}" for scale in ("", "_24gpu", "_48gpu")]
    assert selective == dict.fromkeys(names, "video_hpsv3_local")


def test_the_presets_of_long_videos_train_on_clips_behind_one_history() -> None:
    """Elsewhere the videos are trained on whole, and nothing is there to be shared."""
    found = {}
    for row in GOLDEN:
        c = preset(row)
        window = (c.algorithm.train_window_frames, c.algorithm.window_start, c.evaluation.num_latent_frames)
        found.setdefault((*window, c.rollout.group_sampling), []).append(row.name)
    assert found.pop((21, 21, 60, "clip")) == ["longlive_video_hpsv3_streaming_with_lora_init"]
    assert found.pop((21, "random", 60, "clip")) == ["longlive_video_long"]
    assert found.keys() == {(None, "last", None, "sequence")}


def test_the_table_knows_every_full_size_preset() -> None:
    """A preset that nobody typed by hand would be compared with nothing."""
    shipped = {
        (file.stem.removeprefix("nft_"), name)
        for file in CONFIGS.glob("nft_*.py")
        if file.stem != "nft_tiny"
        for name in presets_in(file)
    }
    assert shipped == {(row.file, row.name) for row in GOLDEN}
    assert len(GOLDEN) == 48 + 26


@pytest.mark.parametrize(
    ("recipe", "num_gpus"),
    [(wan, 6), (wan, 0), (krea, 6), (krea, 32)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_number_of_gpus_without_a_scale_names_the_scales(
    recipe: Callable[..., RunConfig], num_gpus: int
) -> None:
    """A bare KeyError, from a preset that someone has just written."""
    base = ("self_forcing",) if recipe is wan else ()
    with pytest.raises(
        ConfigError, match=rf"mine: .* for {num_gpus} GPUs; use one of 1, 2, 4, 8, 16, 24, 48"
    ):
        recipe("mine", *base, HPSV3, num_gpus=num_gpus)


@pytest.mark.parametrize(("chunk", "expected"), [(1, 21), (2, 20), (3, 21), (4, 20), (5, 20)])
def test_a_recipe_makes_whole_chunks_of_its_frames(
    monkeypatch: pytest.MonkeyPatch, chunk: int, expected: int
) -> None:
    """81 frames, the default, are 21 latent frames: the plan refuses those of a model with chunks of 2."""
    base = BASE_MODELS["self_forcing"]
    mine = dataclasses.replace(base, config=base.model_config(chunk_frames=chunk))
    monkeypatch.setitem(BASE_MODELS, "self_forcing", mine)
    config = wan("mine", "self_forcing", HPSV3, num_gpus=8)
    assert config.model.num_latent_frames == expected
    assert make_plan(config).num_chunks == expected // chunk
