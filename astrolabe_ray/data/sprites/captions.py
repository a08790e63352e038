"""The grammar of the sprite world: what a clip shows, and how its caption says it.

A caption is `a <size> <colour> <shape> <motion> on a <background> background`; there are 1,920.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = ("left", "right", "up", "down")
MOTIONS = (
    *(f"moves {direction}" for direction in DIRECTIONS),
    *(f"moves {direction} and stops" for direction in DIRECTIONS),
    "bounces around",
    "rotates in place",
)
BACKGROUNDS = ("black", "white", "gray", "brown")
HELDOUT_SHARE = 8
"""One caption in so many is held out."""


@dataclass(frozen=True)
class SpriteCaption:
    """What a clip shows. Example: `SpriteCaption("small", "red", "star", "moves left", "black")`."""

    size: str
    colour: str
    shape: str
    motion: str
    background: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape} {self.motion} on a {self.background} background"

    @property
    def is_heldout(self) -> bool:
        """Decided by a hash of the text, so it never changes."""
        return int(hashlib.sha256(str(self).encode()).hexdigest(), 16) % HELDOUT_SHARE == 0


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}
"""Fields of a caption and the values that each can have."""


def all_captions() -> list[SpriteCaption]:
    """Every caption of the grammar, in a fixed order."""
    return [SpriteCaption(*values) for values in product(*ATTRIBUTES.values())]


def train_captions() -> list[SpriteCaption]:
    return [caption for caption in all_captions() if not caption.is_heldout]


def heldout_captions() -> list[SpriteCaption]:
    """In the order of a hash, so that the first few already vary in every attribute."""
    heldout = (caption for caption in all_captions() if caption.is_heldout)
    return sorted(heldout, key=lambda caption: hashlib.sha256(f"order {caption}".encode()).digest())


def parse(text: str) -> SpriteCaption:
    """The caption that reads `text`. Raises KeyError if the grammar has no such sentence."""
    return _BY_TEXT[text]


_BY_TEXT = {str(caption): caption for caption in all_captions()}
