"""What to ask rollout actors for: the requests of a training group."""

from __future__ import annotations

from astrolabe_ray.batching import slices
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.train_window import train_window
from astrolabe_ray.data.group_sampler import group_seed, prefix_seed, rollout_seed
from astrolabe_ray.types import FrameSpec, RolloutRequest


def group_requests(
    config: RunConfig, number: int, prompt: str, views: tuple[FrameSpec, ...]
) -> list[RolloutRequest]:
    """Requests of the group with dispatch number `number`: the same whenever it is rolled out.

    With `rollout.group_sampling=clip` there is one, since its rollouts grow out of one prefix, unless the
    window is where videos start. Else each has `rollout.batch_size` rollouts.
    """
    rollout, (step, group) = config.rollout, divmod(number, config.rollout.num_groups)
    seeds = [rollout_seed(config.seed, step, group, i) for i in range(rollout.group_size)]
    window = train_window(config, group_seed(config.seed, step, group))
    group_id = f"train-{number}"
    if rollout.group_sampling == "clip" and window[0] > 0:
        shared, every = prefix_seed(config.seed, step, group), tuple(range(rollout.group_size))
        return [
            RolloutRequest(group_id, prompt, tuple(seeds), every, views, window, shared, rollout.batch_size)
        ]
    return [
        RolloutRequest(group_id, prompt, tuple(seeds[i] for i in part), part, views, window)
        for part in slices(rollout.group_size, rollout.batch_size)
    ]
