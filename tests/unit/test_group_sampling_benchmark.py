"""The ablation of what a group shares, and the memory of long videos."""

from __future__ import annotations

import math

import pytest

from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import RunConfig
from benchmarks.group_sampling import CASES, case, measured
from benchmarks.one_process import in_own_process

TOKENS, LAYERS, DIM = 4, 4, 128  # of the embedded model: a latent frame's tokens, blocks, channels
KV_WINDOW = 12


def test_the_cases_differ_in_what_a_group_shares_and_where_the_gradient_ends() -> None:
    """A comparison of two things at once says nothing about either."""
    found, others = [], []
    for sampling, detach in CASES:
        config = case(sampling, detach, 0, 2, 9, 3)
        make_plan(config)
        dump = config.model_dump()
        found.append((dump["rollout"].pop("group_sampling"), dump["algorithm"].pop("detach_context")))
        others.append(dump)
    assert found == [("sequence", False), ("sequence", True), ("clip", False), ("clip", True)]
    assert all(other == others[0] for other in others)


def streaming(num_latent_frames: int) -> RunConfig:
    """Two steps on the last 21 latent frames of videos, with a cache of 12 latent frames and a sink of 3."""
    config = case("clip", True, 0, 2, num_latent_frames, 21)
    sections = {
        "model": {"window_frames": KV_WINDOW, "sink_frames": 3, "rope": "relative"},
        "rollout": {"num_groups": 1, "group_size": 4, "batch_size": 4},
        "learner": {"micro_batch_size": 4, "gradient_checkpointing": True},
        "evaluation": {"num_prompts": 2, "rollouts_per_prompt": 2, "num_latent_frames": 9},
    }
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=to) for name, to in sections.items()}
    )


@pytest.mark.slow
def test_training_on_a_window_of_a_minute_takes_the_memory_of_a_short_video() -> None:
    """Activations of the whole video would end a run of 960 frames, after minutes of sampling.

    240 latent frames against 21, in bytes of tensors: 10 % for the latents of the context, and the keys and
    values of one video in view for each of the learner's three policies.
    """
    short, long = (in_own_process(measured, streaming(number)) for number in (21, 240))
    kv_window_mb = 3 * 2 * 4 * LAYERS * KV_WINDOW * TOKENS * DIM / 1e6  # float32
    for result in (short, long):
        assert len(result.losses) == 2 and all(map(math.isfinite, result.losses))
    assert long.peak_mb <= 1.1 * short.peak_mb + kv_window_mb
