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
