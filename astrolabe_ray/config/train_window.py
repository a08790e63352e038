"""Which latent frames of a rollout are scored and trained on: integers only.

Astrolabe (arXiv 2603.17051) tunes long videos window by window: the frames before the window are context,
those behind it are never made.
"""

from __future__ import annotations

from astrolabe_ray.config.schema import RunConfig


def train_window(config: RunConfig, seed: int) -> tuple[int, int]:
    """First frame and end of the window of a group, which starts where a chunk does.

    `seed`: the group's; decides with `window_start=random`, every start being equally likely.
    """
    window, choice, model = window_frames(config), config.algorithm.window_start, config.model
    last = model.num_latent_frames - window
    if choice == "random":
        start = model.chunk_frames * (seed % (last // model.chunk_frames + 1))
    else:
        start = last if choice == "last" else choice
    return start, start + window


def window_frames(config: RunConfig) -> int:
    """Latent frames that one sample trains on."""
    whole = config.model.num_latent_frames
    return config.algorithm.train_window_frames or whole


def longest_rollout(config: RunConfig) -> int:
    """Latent frames that a rollout samples at most: up to the end of the last window."""
    start = config.algorithm.window_start
    return start + window_frames(config) if isinstance(start, int) else config.model.num_latent_frames


def evaluation_frames(config: RunConfig) -> int:
    """Latent frames of a held-out video."""
    return config.evaluation.num_latent_frames or config.model.num_latent_frames
