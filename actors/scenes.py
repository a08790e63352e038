"""`a red circle[5s] | a blue square[10s#] | a star`: prompts with several scenes. No tensors here.

`|` separates scenes. A scene may hold one tag: `[5s]` is its duration, `[5s#]` and `[#]` say that it
starts with a hard cut: nothing before it is seen again. Other scenes take over softly. Outside of tags
`#` is a letter like any other ("we are #1").
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from astrolabe_ray.config.generate_options import MAX_SECONDS
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.video_tasks import FRAMES_PER_LATENT_FRAME, PlannedScene, VideoPlan

_TAG = re.compile(r"(?P<seconds>\d+(?:\.\d+)?)\s*s\s*(?P<cut>#?)|(?P<only_cut>#)")
CARET_CONTEXT = 36
"""Characters of the prompt shown on each side of the place that an error is about."""


@dataclass(frozen=True)
class Scene:
    """A part of a prompt. Example: `Scene("a blue square", seconds=10.0, is_cut=True)`."""

    prompt: str
    seconds: float | None = None  # None: open
    is_cut: bool = False


def parse_scenes(text: str) -> list[Scene]:
    """The scenes of a prompt; one for a prompt without `|`.

    Raises ConfigError, with a caret under the place, for an empty scene and for a tag that is none.
    """
    scenes: list[Scene] = []
    start = 0
    for part in text.split("|"):
        scenes.append(_parse_scene(text, start, start + len(part)))
        start += len(part) + 1
    return scenes


def plan_scenes(
    scenes: Sequence[Scene],
    *,
    fps: int,
    chunk_frames: int,
    default_chunks: int,
    num_chunks: int | None = None,
) -> VideoPlan:
    """When each scene starts, in whole chunks of `chunk_frames` latent frames.

    A duration becomes the nearest whole number of chunks, at least one. Without `num_chunks` an open
    scene has `default_chunks`. With it the last scene ends there, earlier or later than its own
    duration says, and only the last one may be open. Raises ConfigError for a scene that would not
    start within `num_chunks`, and for an open one before others.
    """
    lengths = [_num_chunks(scene, fps, chunk_frames, default_chunks) for scene in scenes]
    starts = [sum(lengths[:number]) for number in range(len(scenes))]
    if num_chunks is not None:
        _require_start(scenes, starts, num_chunks, FRAMES_PER_LATENT_FRAME * chunk_frames / fps)
    return VideoPlan(
        tuple(
            PlannedScene(scene.prompt, start, scene.is_cut and start > 0)
            for scene, start in zip(scenes, starts, strict=True)
        ),
        sum(lengths) if num_chunks is None else num_chunks,
    )


def _num_chunks(scene: Scene, fps: int, chunk_frames: int, default_chunks: int) -> int:
    if scene.seconds is None:
        return default_chunks
    return max(1, math.floor(scene.seconds * fps / (FRAMES_PER_LATENT_FRAME * chunk_frames) + 0.5))


def _require_start(
    scenes: Sequence[Scene], starts: Sequence[int], num_chunks: int, seconds_per_chunk: float
) -> None:
    for number, scene in enumerate(scenes[:-1], start=1):
        if scene.seconds is None:
            raise ConfigError(
                f"scene {number} ('{scene.prompt}') has no duration, and the length of the whole video is "
                "given, so only the last scene may be without one; write for example [5s] behind it"
            )
    for number, (scene, start) in enumerate(zip(scenes, starts, strict=True), start=1):
        if start >= num_chunks:
            raise ConfigError(
                f"scene {number} ('{scene.prompt}') would start at {start * seconds_per_chunk:g} s, but the "
                f"video ends at {num_chunks * seconds_per_chunk:g} s; make it longer or its scenes shorter"
            )


def _parse_scene(text: str, start: int, end: int) -> Scene:
    """The scene `text[start:end]`."""
    seconds, is_cut, tag_start = None, False, None
    words, position = "", start
    while (opened := text.find("[", position, end)) >= 0:
        _require_no_closing(text, position, opened)
        closed = text.find("]", opened, end)
        if closed < 0:
            raise _error(text, opened, "this [ is never closed", "write a duration like [5s]")
        if tag_start is not None:
            raise _error(text, opened, "a scene has one tag at most", "remove this one")
        seconds, is_cut = _parse_tag(text, opened, closed)
        tag_start = opened
        words += text[position:opened] + " "
        position = closed + 1
    _require_no_closing(text, position, end)
    prompt = " ".join((words + text[position:end]).split())
    if not prompt:
        raise _error(
            text, max(0, min(start, len(text) - 1)), "this scene has no text", "describe what it shows"
        )
    return Scene(prompt, seconds, is_cut)


def _require_no_closing(text: str, start: int, end: int) -> None:
    """Raises ConfigError for a bracket in `text[start:end]`, where no tag is open."""
    closed = text.find("]", start, end)
    if closed >= 0:
        raise _error(text, closed, "this ] closes nothing", "write a tag like [5s], or remove it")


def _parse_tag(text: str, opened: int, closed: int) -> tuple[float | None, bool]:
    """Seconds and whether to cut, of the tag between two brackets."""
    content = text[opened + 1 : closed]
    found = _TAG.fullmatch(content.strip())
    if found is None:
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*#?\s*", content):
            number, cut = content.replace("#", "").strip(), "#" if "#" in content else ""
            raise _error(text, opened, "a duration needs its unit", f"write [{number}s{cut}]")
        raise _error(text, opened, f"[{content}] is no tag", "there are [5s], [5s#] for a hard cut, and [#]")
    if found["only_cut"]:
        return None, True
    seconds = float(found["seconds"])
    if not seconds:
        raise _error(text, opened, "a scene of 0 s shows nothing", "give it a longer duration or remove it")
    if seconds > MAX_SECONDS:
        raise _error(text, opened, "a scene may last a day", f"write [{MAX_SECONDS}s] or less")
    return seconds, bool(found["cut"])


def _error(text: str, column: int, what: str, way_out: str) -> ConfigError:
    """An error with a line of the prompt and a caret under `column`."""
    first, last = max(0, column - CARET_CONTEXT), column + CARET_CONTEXT
    before, after = "..." if first else "", "..." if last < len(text) else ""
    shown = before + text[first:last] + after
    caret = " " * (len(before) + column - first) + "^"
    return ConfigError(f"column {column + 1} of the prompt: {what}; {way_out}\n{shown}\n{caret}")
