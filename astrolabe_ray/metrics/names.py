"""Every number of a step or an evaluation: its unit and its meaning, once, for files, W&B, Ray and people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`name` may end in `*`, which stands for a reward key."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("step", "steps", "optimizer steps taken"),
    Metric("reward/*", "score", "mean over the step's rollouts; total is the weighted sum"),
    Metric("reward_std/*", "score", "standard deviation over the step's rollouts"),
    Metric("advantage/reward_std", "score", "standard deviation of the total reward over the batch"),
    Metric("advantage/group_std_mean", "score", "mean standard deviation within a group"),
    Metric("advantage/zero_std_groups", "groups", "groups whose rewards are all equal: nothing to learn"),
    Metric(
        "advantage/skipped_groups", "groups", "of those, left out of the step (algorithm.skip_equal_groups)"
    ),
    Metric("advantage/abs_max", "1", "largest advantage"),
    Metric("policy_age/mean", "steps", "how far behind the policies were that made the rollouts"),
    Metric("policy_age/max", "steps", "the oldest of them"),
    Metric("num_rollouts", "rollouts", "trained on in this step"),
    Metric("loss", "1", "NFT loss plus KL penalty"),
    Metric("policy_loss", "1", "NFT loss"),
    Metric("kl_loss", "1", "mean squared distance to the reference policy, of the samples it counts for"),
    Metric("kl/selected", "1", "share of the rollouts that the KL penalty counts for"),
    Metric("kl/share", "1", "share that is sought of those that the main reward praises above the others"),
    Metric("kl/reference_age", "steps", "age of the reference policy"),
    Metric("kl/reference_threshold", "1", "distance at which the reference is set to the trained policy"),
    Metric("kl/reference_refreshes", "times", "how often that happened so far"),
    Metric("old_deviation", "1", "mean squared distance of the trained to the sampling policy"),
    Metric("grad_norm", "1", "before clipping; not a number when the update was left out"),
    Metric("grad_norm/*", "1", "of one kind of layer over all blocks, before clipping"),
    Metric("grad_norm_weakest/*", "1", "of one kind of layer in the block where it is smallest"),
    Metric("grad_norm_module/*", "1", "of one layer of one block; in gradients.jsonl and the report only"),
    Metric(
        "adapter_norm/*",
        "1",
        "norm of the trained (default), the behaviour (old) and the averaged (ema) adapter",
    ),
    Metric(
        "health/pull", "1", "mean |2 r - 1| of the samples' NFT weights: what is left of the update on policy"
    ),
    Metric("health/unmoved", "1", "share of the adapter's numbers that the step left bitwise as they were"),
    Metric("health/alarms", "1", "guards of the steps that are in alarm"),
    Metric("lr", "1", "learning rate of the step"),
    Metric("skipped_steps", "steps", "updates left out so far because a gradient was not finite"),
    Metric("old_policy_decay", "1", "share of the old policy that was kept at this step"),
    Metric("groups/dropped", "groups", "dropped so far and refilled"),
    Metric("groups/redone", "groups", "rolled out again so far because frames or latents were lost"),
    Metric("rollouts_per_s", "1/s", "rollouts trained on per second of the step"),
    Metric("heldout/step", "steps", "optimizer steps of the policy that the held-out numbers are of"),
    Metric("heldout/left_out", "prompts", "held-out prompts that could not be sampled or scored"),
    Metric("heldout/*", "score", "mean over the held-out videos; diversity: their distance to each other"),
    Metric("heldout_gain/*", "score", "mean paired difference to the first evaluation"),
    Metric("heldout_gain_ci95/*", "score", "half the width of that difference's 95 % confidence interval"),
    Metric("heldout_win_rate/*", "1", "share of the held-out videos that got better; ties half"),
    Metric("seconds/wait", "s", "learner waiting for groups"),
    Metric("seconds/rollout", "s", "denoising and decoding, summed over the actors"),
    Metric("seconds/score", "s", "waiting for scores, summed over the rollouts"),
    Metric("seconds/train", "s", "the optimizer step"),
    Metric("seconds/publish", "s", "handing the new policy to the channel"),
)


def metric(name: str) -> Metric | None:
    """What a name of a row means, or None if it is not declared."""
    for known in METRICS:
        if name == known.name or (known.name.endswith("*") and name.startswith(known.name[:-1])):
            return known
    return None
