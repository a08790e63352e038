"""Draws the clip of a caption: a flat sprite that moves over a plain background.

Deterministic: the seed chooses where the sprite starts, how fast it is and how it is turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from astrolabe_ray.data.sprites.captions import SpriteCaption

SIZE = 32  # pixels, height and width
NUM_FRAMES = 33
SUPERSAMPLING = 4
RADIUS = {"small": 4.5, "large": 8.0}  # pixels
RGB = {
    "red": (225, 45, 40),
    "green": (50, 185, 70),
    "blue": (45, 95, 235),
    "yellow": (245, 220, 50),
    "purple": (165, 65, 205),
    "orange": (250, 140, 30),
    "black": (12, 12, 14),
    "white": (240, 240, 238),
    "gray": (128, 130, 132),
    "brown": (92, 60, 38),
}
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True)
class Track:
    """Where the sprite is in each frame: centres [F, 2] as (x, y) in pixels, turns [F] in radians."""

    centres: np.ndarray
    turns: np.ndarray


def render(caption: SpriteCaption, seed: int) -> np.ndarray:
    """The clip of `caption`, uint8 [33, 3, 32, 32]."""
    path = track(caption, seed)
    frames = [_draw(caption, centre, turn) for centre, turn in zip(path.centres, path.turns, strict=True)]
    return np.stack(frames).transpose(0, 3, 1, 2)


def track(caption: SpriteCaption, seed: int) -> Track:
    """Positions of the sprite over the clip; it always stays inside the picture."""
    rng = np.random.default_rng(seed)
    margin = RADIUS[caption.size] + 1.0
    turn = rng.uniform(-0.25, 0.25)
    time = np.arange(NUM_FRAMES) / (NUM_FRAMES - 1)
    turns = np.full(NUM_FRAMES, turn)
    if caption.motion == "rotates in place":
        centre = rng.uniform(margin + 1, SIZE - margin - 1, 2)
        speed = rng.uniform(1.6, 2.2) * np.pi
        return Track(np.tile(centre, (NUM_FRAMES, 1)), turn + speed * time)
    if caption.motion == "bounces around":
        return Track(_bounce(rng, margin, time), turns)
    return Track(_slide(rng, margin, time, caption.motion), turns)


def _bounce(rng: np.random.Generator, margin: float, time: np.ndarray) -> np.ndarray:
    """Diagonal flight, reflected by the walls."""
    room = SIZE - 2 * margin
    start = rng.uniform(0, room, 2)
    velocity = rng.uniform(34, 48, 2) * rng.choice([-1.0, 1.0], 2)
    folded = np.mod(start + velocity * time[:, None], 2 * room)
    return margin + np.where(folded > room, 2 * room - folded, folded)


def _slide(rng: np.random.Generator, margin: float, time: np.ndarray, motion: str) -> np.ndarray:
    """Straight flight from one side to the other, or half of it and then rest."""
    step = np.array(STEP[motion.split()[1]])
    room = SIZE - 2 * margin
    length = room * rng.uniform(0.8, 1.0)
    centre = np.full(2, SIZE / 2.0) + (1 - np.abs(step)) * rng.uniform(-0.5, 0.5) * room
    start = centre - step * room / 2 + step * rng.uniform(0, room - length)
    if motion.endswith("stops"):
        time = np.minimum(time / 0.5, 1.0) * 0.75
    return start + step * length * time[:, None]


def _draw(caption: SpriteCaption, centre: np.ndarray, turn: float) -> np.ndarray:
    """One antialiased frame, uint8 [32, 32, 3]."""
    big = np.full((SIZE * SUPERSAMPLING,) * 2 + (3,), RGB[caption.background], np.uint8)
    radius = RADIUS[caption.size]
    outline = (centre + radius * _outline(caption.shape, turn)) * SUPERSAMPLING
    cv2.fillPoly(big, [np.round(outline).astype(np.int32)], RGB[caption.colour])
    return cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _outline(shape: str, turn: float) -> np.ndarray:
    """Corners [n, 2] of a shape of radius 1."""
    if shape == "star":
        radii, count = np.tile([1.1, 0.5], 5), 10
    else:
        count = {"circle": 40, "square": 4, "triangle": 3}[shape]
        radii = np.ones(count) * {"circle": 0.92, "square": 1.1, "triangle": 1.15}[shape]
    first = {"square": np.pi / 4}.get(shape, -np.pi / 2)
    angles = first + turn + 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
