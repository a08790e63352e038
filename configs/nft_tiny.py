"""DiffusionNFT on the embedded sprites model: minutes on two CPU cores, nothing to download.

python launch.py train --config configs/nft_tiny.py:tiny_sprites
"""

from __future__ import annotations

from astrolabe_ray.config.recipes import sprites
from astrolabe_ray.config.schema import RunConfig


def tiny_sprites() -> RunConfig:
    """The demo: one rollout actor, one learner rank, three reward servers."""
    return sprites("tiny_sprites", num_steps=44)


def tiny_sprites_two_ranks() -> RunConfig:
    """The same run with optimizer state and gradients split over two learner ranks (ZeRO 2)."""
    return sprites("tiny_sprites_two_ranks", num_steps=44, num_ranks=2)
