"""Random clips with their captions, for training the embedded models."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from astrolabe_ray.data.sprites.captions import SpriteCaption, train_captions
from astrolabe_ray.data.sprites.render import render


def random_captions(count: int, seed: int) -> list[SpriteCaption]:
    """`count` training captions: every one of them once before any comes again."""
    captions, chosen = train_captions(), []
    rng = random.Random(seed)
    while len(chosen) < count:
        rng.shuffle(captions)
        chosen += captions
    return chosen[:count]


def render_clips(captions: Sequence[SpriteCaption], seed: int) -> np.ndarray:
    """Clips of `captions`, uint8 [N, 33, 3, 32, 32]; clip i is drawn with seed `seed + i`."""
    return np.stack([render(caption, seed + i) for i, caption in enumerate(captions)])
