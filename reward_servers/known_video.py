"""A video that a replica warms up with, and whose score it must go on giving as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astrolabe_ray.config.scorer_cards import ScorerCard
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.types import FrameSpec
from reward_servers.scorers import Scorer
from reward_servers.scoring import finite_numbers

PROMPT = "a small red circle moves left on a black background"
SMALL = (9, 64, 64)
"""Frames, height and width of the video that a replica is tested with."""
FULL_SIZE = (81, 480, 832)
"""Of those that it warms up with on a GPU: what the published models make."""
REL_TOLERANCE, ABS_TOLERANCE = 1e-2, 1e-3
"""A replica's answers may differ by so much: in 16 bits, kernels differ by about a tenth of it."""

Answers = dict[str, float]
"""Frames and name of a number -> its value for the known video."""


def drawn_video(num_frames: int, height: int, width: int) -> np.ndarray:
    """Stripes that move: uint8 [F, 3, H, W], the same everywhere."""
    f, c, y, x = np.ogrid[:num_frames, :3, :height, :width]
    return ((x * 3 + y * 5 + f * 7 + c * 40) % 256).astype(np.uint8)


def views_of(card: ScorerCard, size: tuple[int, int, int]) -> dict[FrameSpec, np.ndarray]:
    """Each distinct view that a scorer is asked about, of a drawn video of this size."""
    video = drawn_video(*size)
    frames = dict.fromkeys(reading.frames for reading in card.keys.values())
    return {spec: derive_view(video, spec) for spec in frames}


def warm_up(scorer: Scorer, card: ScorerCard, *, batch_size: int, device: str) -> None:
    """The largest batch, once for each view. Raises what a scorer raises that can't do it."""
    for view in views_of(card, SMALL if device == "cpu" else FULL_SIZE).values():
        videos = np.broadcast_to(view, (batch_size, *view.shape))
        finite_numbers(scorer, np.ascontiguousarray(videos), [PROMPT] * batch_size)


def answers_of(scorer: Scorer, card: ScorerCard) -> Answers:
    """What `scorer` says of the known video. Raises DataFailure for a number that is not finite."""
    found = {}
    for number, view in enumerate(views_of(card, SMALL).values()):
        for name, column in finite_numbers(scorer, view[None], [PROMPT]).items():
            found[f"{name} of view {number}"] = float(column[0])
    return found


def changed(before: Answers, now: Answers) -> Sequence[str]:
    """The answers that are not what they were, as text."""
    return [
        f"{name} was {before[name]:g} and is {value:g}"
        for name, value in now.items()
        if abs(value - before[name]) > ABS_TOLERANCE + REL_TOLERANCE * abs(before[name])
    ]


def complaint_of(scorer: Scorer, card: ScorerCard, before: Answers) -> str:
    """What is wrong with a scorer now; empty: it says of the known video what it said `before`, or nobody
    may ask it, because its model is elsewhere."""
    if not before:
        return ""
    try:
        return "; ".join(changed(before, answers_of(scorer, card)))
    except Exception as error:  # the border to code of others
        return repr(error)
