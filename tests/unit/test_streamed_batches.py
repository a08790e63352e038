"""What a step's groups say one by one, and how the whole batch follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from astrolabe_ray.config.algorithm_rules import streaming_rules
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.memory import learner_rank, sizes_of
from astrolabe_ray.config.plan import make_plan
from astrolabe_ray.config.schema import AlgorithmConfig, LearnerConfig, RewardConfig, RunConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.rollout_buffer import RolloutBuffer
from astrolabe_ray.step_batch import StepBatches
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores, TrainBatch, TrainPart

TINY = f"{Path(__file__).parents[2] / 'configs' / 'nft_tiny.py'}:tiny_sprites"
STREAMING = ["learner.accumulate=streaming", "rollout.max_policy_age=0", "learner.zero_stage=2"]


def batches(num_ranks: int = 1, **algorithm: object) -> StepBatches:
    learner = LearnerConfig(accumulate="streaming", micro_batch_size=2, num_ranks=num_ranks)
    settings = AlgorithmConfig(**algorithm)  # type: ignore[arg-type]
    rewards = (RewardConfig(key="a", weight=2.0),)
    return StepBatches(RunConfig(name="run", rewards=rewards, algorithm=settings, learner=learner))


def group(number: int, rewards: Sequence[float], prompt: str | None = None) -> RolloutGroup:
    name, prompt = f"g{number}", prompt or f"prompt {number}"
    rollouts = tuple(
        Rollout(name, i, prompt, i, PolicyVersion(), "actor", None, ()) for i in range(len(rewards))
    )
    return RolloutGroup(name, number, prompt, rollouts, tuple(Scores({"a": reward}) for reward in rewards))


def advantages(batch: TrainBatch | TrainPart | None) -> dict[str, float]:
    assert batch is not None
    return {s.rollout_id: s.advantage for rank in batch.ranks for micro in rank for s in micro if s.weight}


GROUPS = [group(0, [1.0, 2.0, 6.0]), group(1, [5.0, 5.5, 3.0])]


def test_the_mode_shapes_what_is_trained_on_alone_and_in_the_batch() -> None:
    """A part with whole advantages would be added to a batch of signs."""
    signs = {"g0/0": -1.0, "g0/1": -1.0, "g0/2": 1.0, "g1/0": 1.0, "g1/1": 1.0, "g1/2": -1.0}
    made = batches(advantage_mode="binary", advantage_std="group")
    assert advantages(made.part(GROUPS[0], 0)) | advantages(made.part(GROUPS[1], 0)) == signs
    assert advantages(made.make(GROUPS, 0).batch) == signs
    assert advantages(batches(advantage_mode="one_only").make(GROUPS, 0).batch) == {
        name: max(sign, 0.0) for name, sign in signs.items()
    }


def test_a_group_alone_is_centred_and_the_batch_tells_by_what_to_divide() -> None:
    """By hand: mean 3 and weight 2 make -4, -2, 6; the std of all six doubled rewards is sqrt(167/12)."""
    made = batches()
    part = made.part(GROUPS[0], 4)
    assert part is not None and (part.group_id, part.step) == ("g0", 4)
    assert advantages(part) == pytest.approx({"g0/0": -4, "g0/1": -2, "g0/2": 6})
    batch = made.make(GROUPS, 4, accumulated={"g0", "g1"}).batch
    assert batch.streamed is not None and batch.streamed.group_ids == ("g0", "g1")
    assert batch.streamed.advantage_scale == pytest.approx(1 / ((167 / 12) ** 0.5 + 1e-4))
    both = advantages(part) | advantages(made.part(GROUPS[1], 4))
    scaled = {key: value * batch.streamed.advantage_scale for key, value in both.items()}
    assert scaled == pytest.approx(advantages(batch), rel=1e-12)


def test_a_batch_of_other_groups_than_were_accumulated_is_an_ordinary_one() -> None:
    """Gradients of a group that was dropped, or none of one that was not."""
    for accumulated in (set(), {"g0"}, {"g0", "g1", "g2"}):
        made = batches().make(GROUPS, 0, accumulated=accumulated)
        assert made.batch.streamed is None
        assert made.metrics["streaming/clipped"] == 0


def test_a_clipped_advantage_is_counted_and_makes_the_batch_an_ordinary_one() -> None:
    """The loss is linear in an advantage only up to the clip. The largest of these is 6 / 3.73 = 1.61."""
    made = batches(adv_clip_max=1.5).make(GROUPS, 0, accumulated={"g0", "g1"})
    assert made.batch.streamed is None and made.metrics["streaming/clipped"] == 1
    assert batches(adv_clip_max=1.7).make(GROUPS, 0, accumulated={"g0", "g1"}).batch.streamed is not None


def test_with_the_std_of_the_group_a_part_has_final_advantages_clipped_or_not() -> None:
    """One sum of gradients is enough then, and nothing ever falls back. 6 / 4.32 = 3 / 2.16 = 1.39."""
    made = batches(advantage_std="group", adv_clip_max=1.2)
    batch = made.make(GROUPS, 0, accumulated={"g0", "g1"})
    assert batch.batch.streamed is not None and batch.batch.streamed.advantage_scale == 1
    assert batch.metrics["streaming/clipped"] == 2
    parts = advantages(made.part(GROUPS[0], 0)) | advantages(made.part(GROUPS[1], 0))
    assert parts == advantages(batch.batch)


def test_equal_groups_are_left_out_of_the_stream_as_of_the_batch() -> None:
    """If all are equal the batch keeps them, and they were not accumulated."""
    equal = group(2, [3.0, 3.0, 3.0])
    made = batches(skip_equal_groups=True)
    assert made.part(equal, 0) is None
    assert made.make([*GROUPS, equal], 0, accumulated={"g0", "g1"}).batch.streamed is not None
    assert made.make([equal], 0, accumulated=set()).batch.streamed is None
    assert set(advantages(batches().part(equal, 0)).values()) == {0.0}


def test_a_part_remembers_rewards_of_earlier_steps_and_not_of_a_step_that_failed() -> None:
    """The history of the prompt after step 0 is 1, 2, 6 doubled; a step made in vain adds nothing."""
    made = batches(prompt_history=8)
    made.make([GROUPS[0]], 0)
    made.commit()
    again = group(7, [4.0, 0.0], prompt="prompt 0")
    made.make([again], 1)  # its latents were lost
    mean = (2 + 4 + 12 + 8 + 0) / 5
    part = made.part(again, 1)
    assert advantages(part) == pytest.approx({"g7/0": 8 - mean, "g7/1": -mean})
    batch = made.make([again], 1, accumulated={"g7"}).batch
    assert batch.streamed is not None
    scaled = {key: value * batch.streamed.advantage_scale for key, value in advantages(part).items()}
    assert scaled == pytest.approx(advantages(batch), rel=1e-12)


def test_a_part_is_spread_over_ranks_like_a_batch() -> None:
    """Each rank reads the same number of microbatches, or one waits for the other."""
    part = batches(num_ranks=2).part(GROUPS[0], 0)
    assert part is not None and [len(rank) for rank in part.ranks] == [1, 1]
    assert len(advantages(part)) == 3


def test_groups_go_in_the_order_of_their_dispatch() -> None:
    """Sums in the order of arrival differ in their last bits from run to run."""
    buffer = RolloutBuffer(num_groups=4, max_policy_age=0)
    for _ in range(4):
        buffer.dispatch()
    seen = []
    for number in (2, 0, 3, 1):
        buffer.ready(group(number, [0.0, 1.0]))
        seen.append([g.number for g in buffer.next_in_order()])
    assert seen == [[], [0], [0], [0, 1, 2, 3]]
    buffer.version = PolicyVersion(1, 0)  # the learner began again: they belong to lost steps
    assert buffer.next_in_order() == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.max_policy_age=1"], "rollout.max_policy_age=0"),
        (["learner.zero_stage=3"], "learner.zero_stage=2"),
        (["rollout.group_size=1", "rollout.batch_size=1"], "rollout.group_size=2"),
        (["algorithm.advantage_peers=prompt"], "advantage_peers=group"),
        (["algorithm.kl_samples=disagreeing"], "kl_samples=all"),
        (["algorithm.advantage_mode=binary"], "advantage_std=group"),
        (["algorithm.timestep_draw=microbatch"], "timestep_draw=sample"),
        (["learner.keep_attention=true"], "keep_attention=false"),
    ],
)
def test_what_cannot_be_streamed_is_one_line_with_a_way_out(overrides: list[str], words: str) -> None:
    """Another update than the batch's, or a crash in the first step on the cluster."""
    (line,) = streaming_rules(load(TINY, [*STREAMING, *overrides]))
    assert words in line and line.endswith("or --config.learner.accumulate=batch.")
    assert not list(streaming_rules(load(TINY, [*STREAMING, *overrides, "learner.accumulate=batch"])))


def test_a_run_that_can_be_streamed_has_a_plan_and_memory_for_its_sums() -> None:
    """A GPU that is full in the first step."""
    config = load(TINY, STREAMING)
    make_plan(config)
    make_plan(load(TINY, [*STREAMING, "learner.keep_attention=true", "algorithm.advantage_std=group"]))
    with pytest.raises(ConfigError, match="sampling with the gradients of one policy"):
        make_plan(load(TINY, [*STREAMING, "rollout.max_policy_age=1"]))
    full = load(TINY, ["model.base_model=longlive", *STREAMING])
    plain = full.model_copy(update={"learner": full.learner.model_copy(update={"accumulate": "batch"})})
    more = learner_rank(full, sizes_of(full.model))
    assert more.pop("sums of gradients") == 3 * more["gradients"] * full.learner.num_ranks
    assert more == learner_rank(plain, sizes_of(plain.model))
