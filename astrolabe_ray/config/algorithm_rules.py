"""Options of the algorithm that only mean something together; each finding is one line with a way out."""

from __future__ import annotations

from collections.abc import Iterator

from astrolabe_ray.config.schema import RunConfig


def algorithm_rules(config: RunConfig) -> Iterator[str]:
    """What is wrong with the options of the loss, the advantages and the optimizer."""
    algorithm, rollout, learner = config.algorithm, config.rollout, config.learner
    if config.lora.dtype == "bfloat16" and learner.zero_stage != 0:
        yield (
            f"lora.dtype bfloat16 needs a plain optimizer, and learner.zero_stage {learner.zero_stage} keeps "
            "float32 copies. Try --config.learner.zero_stage=0."
        )
    if algorithm.context_mask == "frame" and algorithm.clean_context:
        yield (
            "algorithm.context_mask=frame is a mask for noisy context. "
            "Try --config.algorithm.clean_context=false or --config.algorithm.context_mask=chunk."
        )
    shared = config.data.prompts_per_step
    if shared is not None and rollout.num_groups % shared:
        yield (
            f"data.prompts_per_step {shared} does not divide rollout.num_groups {rollout.num_groups}. "
            f"Try --config.rollout.num_groups={-(-rollout.num_groups // shared) * shared}."
        )
    if rollout.group_size == 1 and algorithm.reward_scale == "group":
        yield (
            "algorithm.reward_scale=group leaves only zeros of rollout.group_size 1. "
            "Try --config.algorithm.reward_scale=raw."
        )
    if algorithm.reward_scale == "group" and (
        algorithm.advantage_peers == "prompt" or algorithm.prompt_history > 0
    ):
        yield (
            "algorithm.reward_scale=group centres each group by itself, so nothing is left to compare it "
            "with: algorithm.advantage_peers=prompt and algorithm.prompt_history would do nothing. "
            "Try --config.algorithm.reward_scale=raw."
        )
    if learner.offload_optimizer and learner.zero_stage == 0:
        yield (
            "learner.offload_optimizer needs ZeRO's own optimizer. Try --config.learner.zero_stage=2 or "
            "--config.learner.offload_optimizer=false."
        )


def streaming_rules(config: RunConfig) -> Iterator[str]:
    """What `learner.accumulate=streaming` can't do: a group's gradients must be known up to one number that
    all groups of the step share."""
    algorithm, learner = config.algorithm, config.learner
    if learner.accumulate == "batch":
        return
    out = "or --config.learner.accumulate=batch."
    if config.rollout.max_policy_age > 0:
        yield (
            "learner.accumulate=streaming overlaps sampling with the gradients of one policy, and "
            f"rollout.max_policy_age {config.rollout.max_policy_age} does so with several. "
            f"Try --config.rollout.max_policy_age=0 {out}"
        )
    if learner.zero_stage == 3:
        yield (
            "learner.accumulate=streaming keeps whole gradients on every rank, and learner.zero_stage 3 has "
            f"only parts of the weights there. Try --config.learner.zero_stage=2 {out}"
        )
    if config.rollout.group_size == 1:
        yield (
            "learner.accumulate=streaming needs groups that are compared within themselves, and "
            "rollout.group_size 1 compares all of a step with each other. "
            f"Try --config.rollout.group_size=2 {out}"
        )
    if algorithm.advantage_peers == "prompt":
        yield (
            "learner.accumulate=streaming knows a group before the others of its prompt, which "
            f"algorithm.advantage_peers=prompt asks for. Try --config.algorithm.advantage_peers=group {out}"
        )
    if algorithm.advantage_mode != "all" and algorithm.advantage_std == "global":
        yield (
            "learner.accumulate=streaming scales a group's advantages by a std that it learns last, and "
            f"algorithm.advantage_mode={algorithm.advantage_mode} is no scaling. "
            f"Try --config.algorithm.advantage_mode=all, --config.algorithm.advantage_std=group {out}"
        )
    if algorithm.kl_samples == "disagreeing":
        yield (
            "learner.accumulate=streaming knows no ranks over the whole batch, by which "
            f"algorithm.kl_samples=disagreeing chooses. Try --config.algorithm.kl_samples=all {out}"
        )
    if algorithm.timestep_draw == "microbatch":
        yield (
            "learner.accumulate=streaming makes microbatches of single groups, and with "
            "algorithm.timestep_draw=microbatch a sample's timesteps depend on its microbatch. "
            f"Try --config.algorithm.timestep_draw=sample {out}"
        )
    if learner.keep_attention and algorithm.advantage_std == "global":
        yield (
            "learner.accumulate=streaming goes twice through a forward with algorithm.advantage_std=global, "
            f"and learner.keep_attention allows once. Try --config.learner.keep_attention=false {out}"
        )
