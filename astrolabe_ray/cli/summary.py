"""A plan in a few lines for people."""

from __future__ import annotations

from astrolabe_ray.config.plan import Plan
from astrolabe_ray.config.schema import RunConfig


def plan_lines(config: RunConfig, plan: Plan) -> list[str]:
    """What a run will do and what it needs, aligned in two columns."""
    model, rollout = config.model, config.rollout
    frames, height, width = plan.latent_shape
    rewards = ", ".join(f"{reward.weight:g} {reward.key}" for reward in config.rewards)
    rows = {
        "run": f"{config.name}, seed {config.seed}, {config.num_steps} steps",
        "model": f"{model.base_model} in {model.path}, "
        f"{plan.num_frames} frames of {model.height}x{model.width} at {model.fps} fps",
        "latents": f"{frames} x {height} x {width} in {plan.num_chunks} chunks, "
        f"{plan.tokens_per_latent_frame} tokens a latent frame",
        "step": f"{rollout.num_groups} prompts x {rollout.group_size} rollouts = {plan.num_rollouts}, "
        f"policy age at most {rollout.max_policy_age}",
        "window": _window(config),
        "rewards": rewards,
        "learner": f"ranks: {config.learner.num_ranks}, ZeRO {config.learner.zero_stage}, "
        f"at most {plan.samples_per_rank} rollouts each",
        "evaluation": f"{plan.eval_rollouts} held-out videos",
        "needs": "; ".join(str(need) for need in plan.needs),
        "in total": f"{plan.num_cpus:g} CPUs, {plan.num_gpus:g} GPUs",
    }
    return [row(name, text) for name, text in rows.items() if text]


def _window(config: RunConfig) -> str:
    """Empty when whole videos are trained on."""
    window, start = config.algorithm.train_window_frames, config.algorithm.window_start
    if window is None:
        return ""
    where = {"last": "the last ones", "random": "somewhere, drawn for each prompt"}
    at = f"from {start} on" if isinstance(start, int) else where[start]
    shared = (
        "; a prompt's rollouts share what is before it" if config.rollout.group_sampling == "clip" else ""
    )
    return f"{window} latent frames are scored and trained on, {at}{shared}"


def row(name: str, text: str) -> str:
    """A line of the two columns."""
    return f"{name:>10}  {text}"
