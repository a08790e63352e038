"""`algorithm.compat=astrolabe`: what the first Astrolabe release did, option by option, for comparison only.

Each deviation is an option of its own; this table only sets them together. docs/algorithm.md says why each
default differs.
"""

from __future__ import annotations

from collections.abc import Sequence

from astrolabe_ray.config.schema import RunConfig

COMPAT_KEY = "algorithm.compat"
ASTROLABE: dict[str, str] = {
    "algorithm.loss_space": "x0",
    "algorithm.loss_dtype": "bfloat16",
    "algorithm.nft_beta": "0.1",
    "algorithm.kl_reference": "base",
    "algorithm.kl_rule": "release",
    "algorithm.reward_scale": "raw",
    "algorithm.advantage_std": "global",
    "algorithm.advantage_peers": "prompt",
    "algorithm.timesteps_per_sample": "1",
    "algorithm.train_timesteps": "plain",
    "algorithm.x0_sigma": "table",
    "algorithm.timestep_draw": "microbatch",
    "algorithm.old_policy_decay": "linear",
    "algorithm.clean_context": "false",
    "algorithm.context_mask": "frame",
    "data.prompts_per_step": "1",
    "lora.dtype": "bfloat16",
    "learner.zero_stage": "0",
    "rollout.max_policy_age": "0",
}
"""Option -> its value in the release, as it would be typed."""


def with_compat(config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """`overrides` (`KEY=VALUE`) with those of the table before them, if they or `config` ask for it.

    So an option that is set by hand wins over the table, whatever the order.
    """
    asked = config.algorithm.compat
    for override in overrides:
        key, _, value = override.partition("=")
        asked = value.strip() if key.removeprefix("--config.") == COMPAT_KEY else asked
    if asked != "astrolabe":
        return list(overrides)
    return [f"{key}={value}" for key, value in ASTROLABE.items()] + list(overrides)
