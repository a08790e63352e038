"""What a rollout actor promises of rollouts that go on from one history."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.rollout_actor import RolloutActor, RolloutActorSpec, with_payloads
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import DataFailure
from astrolabe_ray.types import FrameSpec, Rollout, RolloutRequest
from tests.tiny_policy import published, tiny_run

pytestmark = pytest.mark.usefixtures("one_thread")
VIEWS = (FrameSpec(), FrameSpec(num_frames=2, height=8, width=8))
START, END = 4, 8
ASKED = RolloutRequest("train-0", "a red circle", (3, 4, 5), (0, 1, 2), VIEWS, (START, END), 9, 3)


def actor_of(config: RunConfig, model_root: Path) -> RolloutActor:
    actor = RolloutActor(dataclasses.replace(RolloutActorSpec.of(config), num_threads=None), "rollout-7")
    actor.setup()
    policy = published(model_root, 1)
    actor.load_policy(policy.manifest, policy.buffer)
    return actor


def generated(actor: RolloutActor, asked: RolloutRequest) -> list[Rollout]:
    records, *blobs = actor.generate(asked)
    assert len(blobs) == asked.num_payloads
    return with_payloads(records, blobs, len(asked.views))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_latents_of_the_history_travel_once(model_root: Path, dtype: str) -> None:
    """24 candidates behind 219 latent frames would send 5256 of them."""
    actor = actor_of(tiny_run(model_root, dtype=dtype), model_root)
    records, *blobs = actor.generate(ASKED)
    sizes = [blob.size for blob in blobs]
    frame = 4 * 4 * 2  # channels, latent rows and columns
    clip = [4 * (END - START) * 3 * 32 * 16, 2 * 3 * 8 * 8, (END - START) * frame]
    assert sizes == [START * frame, *clip * 3]
    rollouts = with_payloads(records, blobs, len(VIEWS))
    assert all(rollout.prefix is blobs[0] for rollout in rollouts)
    assert [(r.index, r.seed, r.window_start) for r in rollouts] == [
        (0, 3, START),
        (1, 4, START),
        (2, 5, START),
    ]


def test_a_group_made_again_elsewhere_is_bitwise_the_same(model_root: Path) -> None:
    """Its scores would be those of other clips than the ones that are trained on."""
    config = tiny_run(model_root)
    first, again = (generated(actor_of(config, model_root), ASKED) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        pairs = zip((a.prefix, a.latents, *a.views), (b.prefix, b.latents, *b.views), strict=True)
        assert all(np.array_equal(x, y) for x, y in pairs)
    assert not np.array_equal(first[0].latents, first[1].latents)
    (other,) = generated(
        actor_of(config, model_root),
        dataclasses.replace(ASKED, seeds=(3,), indices=(0,), prefix_seed=10, batch_size=1),
    )
    assert not np.array_equal(other.prefix, first[0].prefix)


def test_a_history_that_is_not_finite_is_a_fault_of_the_data(model_root: Path) -> None:
    """Clips of it may look fine for a while, and their context would poison the update."""
    actor = actor_of(tiny_run(model_root), model_root)
    with torch.no_grad():
        actor._model.head.head.weight.fill_(float("nan"))
    with pytest.raises(DataFailure, match="not finite"):
        actor.generate(ASKED)
