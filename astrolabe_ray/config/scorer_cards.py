"""What is known of each reward model before anything of it is loaded: a card of plain facts.

Plans, memory, the split of GPUs and the check of files read cards; the scorers themselves are in the role
`reward_servers`. A scorer from outside brings its own card.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from astrolabe_ray.config.reward_files import (
    AESTHETIC_FILES,
    CLIP_FILES,
    HPSV2_FILES,
    HPSV3_FILES,
    VIDEOREWARD_FILES,
    FileNeed,
)
from astrolabe_ray.types import FrameSpec

GB = 10**9
COMPILE = {"compile": "no"}
"""Option of scorers whose network can go through torch.compile; `yes` or `no`."""
EVERY_FRAME = FrameSpec()


@dataclass(frozen=True)
class Reading:
    """Which frames a reward key looks at, and which of the scorer's numbers it is.

    Example: `Reading(FrameSpec(num_frames=10, grayscale=True), "mq")`.
    """

    frames: FrameSpec = EVERY_FRAME
    number: str = ""  # a name in what `score` returns; "": the key itself


@dataclass(frozen=True)
class ScorerCard:
    """One reward model: one server, one or more reward keys.

    Example: `ScorerCard("red", {"red": Reading(FrameSpec(num_frames=4))}, licence="MIT")`.
    """

    name: str
    keys: Mapping[str, Reading]
    licence: str
    summary: str = ""
    files: tuple[FileNeed, ...] = ()
    packages: tuple[str, ...] = ()  # modules that must be installed besides those of this project
    options: Mapping[str, str] = field(default_factory=dict)  # name -> default, for `rewards.N.options`
    file_options: tuple[str, ...] = ()  # options that name a file, or nothing
    batch_size: int = 16  # videos in one forward at full size, for presets; a reward's `max_batch_size`
    memory: Mapping[str, float] = field(default_factory=dict)  # part -> bytes
    tflop: float | None = None  # of one view of a video with 81 frames; None: hardly any
    stand_in: str | None = None  # embedded scorer that looks at the same side of a video
    stand_ins: Mapping[str, str] = field(default_factory=dict)  # the same for single keys
    asks_elsewhere: bool = False  # its model is behind an endpoint: a server does not test it by itself
    frame_by_frame: bool = False  # a video of one frame is scored, as that frame is within a longer one

    def reading(self, key: str) -> Reading:
        """Of a reward key as a config writes it, with the number's name filled in."""
        inner = key if key in self.keys else key.partition("/")[2] or next(iter(self.keys))
        found = self.keys[inner]
        return Reading(found.frames, found.number or inner)

    def stand_in_for(self, key: str) -> str | None:
        return self.stand_ins.get(key, self.stand_in)


class Named(Protocol):
    """A reward of a config, as far as its server goes."""

    @property
    def key(self) -> str: ...


TEN_FRAMES = FrameSpec(num_frames=10)
TEN_GRAY_FRAMES = FrameSpec(num_frames=10, grayscale=True)
EIGHT_FRAMES = FrameSpec(num_frames=8)
TINY_FRAMES = FrameSpec(num_frames=4, height=32, width=32)

CARDS = (
    ScorerCard(
        "tiny_clip",
        {"tiny_clip": Reading(TINY_FRAMES)},
        "Apache-2.0",
        "text alignment of sprite videos, by the embedded CLIP",
        options=COMPILE,
        memory={"weights": 0.002 * GB},
        frame_by_frame=True,
    ),
    ScorerCard(
        "motion_quality", {"motion_quality": Reading()}, "Apache-2.0", "presence, coherence, steadiness"
    ),
    ScorerCard(
        "image_quality",
        {"image_quality": Reading(TINY_FRAMES)},
        "Apache-2.0",
        "contrast, sharpness, cleanness",
        frame_by_frame=True,
    ),
    ScorerCard(
        "hpsv3",
        {
            "video_hpsv3_local": Reading(),
            "video_hpsv3_mean": Reading(),
            "video_hpsv3_sigma": Reading(),
        },
        "MIT (code; weights: see the publisher)",
        "HPSv3: a Qwen2-VL-7B with a rank head, on every frame",
        HPSV3_FILES,
        options=COMPILE,
        batch_size=4,
        memory={"weights": 16.6 * GB, "activations": 2.0 * GB},
        tflop=973.3,
        stand_in="image_quality",
        frame_by_frame=True,
    ),
    ScorerCard(
        "videoreward",
        {
            "videoalign_vq_score": Reading(TEN_FRAMES, "vq"),
            "videoalign_mq_score": Reading(TEN_GRAY_FRAMES, "mq"),
            "videoalign_mq_rgb_score": Reading(TEN_FRAMES, "mq"),
            "videoalign_ta_score": Reading(TEN_FRAMES, "ta"),
            "videoalign_score": Reading(TEN_FRAMES, "overall"),
        },
        "see the publisher",
        "VideoReward (VideoAlign): a Qwen2-VL-2B read at three tokens, on ten frames",
        VIDEOREWARD_FILES,
        options=COMPILE,
        batch_size=4,
        memory={"weights": 4.4 * GB, "activations": 1.5 * GB},
        tflop=13.1,
        stand_in="image_quality",
        stand_ins={
            "videoalign_mq_score": "motion_quality",
            "videoalign_mq_rgb_score": "motion_quality",
            "videoalign_ta_score": "tiny_clip",
        },
    ),
    ScorerCard(
        "hpsv2",
        {"video_hpsv2_local": Reading()},
        "Apache-2.0 (weights: see the publisher)",
        "HPSv2.1: a CLIP ViT-H/14, on every frame",
        HPSV2_FILES,
        options={"architecture": "ViT-H-14", **COMPILE},
        memory={"weights": 4.0 * GB, "activations": 1.0 * GB},
        tflop=27.0,
        stand_in="image_quality",
        frame_by_frame=True,
    ),
    ScorerCard(
        "aesthetic",
        {"aesthetic": Reading(EIGHT_FRAMES)},
        "see the publisher",
        "the LAION aesthetic predictor on a CLIP ViT-L/14, on eight frames",
        AESTHETIC_FILES,
        options={"architecture": "ViT-L-14-quickgelu", **COMPILE},
        memory={"weights": 1.8 * GB, "activations": 0.5 * GB},
        tflop=1.3,
        stand_in="image_quality",
        frame_by_frame=True,
    ),
    ScorerCard(
        "clip",
        {"clip_score": Reading(EIGHT_FRAMES)},
        "MIT",
        "cosine of CLIP ViT-L/14's image and text features, on eight frames",
        CLIP_FILES,
        options={"architecture": "ViT-L-14-quickgelu", **COMPILE},
        memory={"weights": 1.8 * GB, "activations": 0.5 * GB},
        tflop=1.3,
        stand_in="tiny_clip",
        frame_by_frame=True,
    ),
    ScorerCard(
        "optical_flow",
        {"motion_smoothness_score": Reading(), "dynamic_degree_score": Reading()},
        "Apache-2.0 (RAFT's weights: see the publisher)",
        "amount and smoothness of motion, by optical flow",
        options={"raft_weights": ""},
        file_options=("raft_weights",),
        memory={"weights": 0.02 * GB, "activations": 2.0 * GB},
        stand_in="motion_quality",
    ),
    ScorerCard(
        "unifiedreward",
        {"unifiedreward": Reading(FrameSpec(num_frames=4, height=512, width=512))},
        "see the publisher",
        "a vision-language model behind an OpenAI-compatible endpoint, on four frames",
        packages=("openai",),
        options={"endpoint": "http://127.0.0.1:17140/v1", "model": "UnifiedReward-7b-v1.5"},
        stand_in="tiny_clip",
        asks_elsewhere=True,
    ),
)
BY_NAME = {card.name: card for card in CARDS}
BY_KEY = {key: card for card in CARDS for key in card.keys}
"""Built-in reward keys."""


def scorer_name(key: str) -> str:
    """The scorer, and so the server, that a reward key belongs to; of others: what is before a `/`.

    Examples: `videoalign_mq_score` -> `videoreward`, `my_rewards:Red/red` -> `my_rewards:Red`.
    """
    return BY_KEY[key].name if key in BY_KEY else key.partition("/")[0]


def by_server(keys: Iterable[str]) -> dict[str, list[str]]:
    """Scorer -> those of `keys` that it gives, both in the order of `keys`."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(scorer_name(key), []).append(key)
    return found


def num_views(keys: Collection[str]) -> int:
    """Views of a video that one built-in scorer must see for `keys`."""
    return len({BY_KEY[key].reading(key).frames for key in keys})


def parse_options(text: str, card: ScorerCard) -> dict[str, str]:
    """`NAME=VALUE,NAME=VALUE` over the card's defaults. Raises ValueError for an unknown name."""
    found = dict(card.options)
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in found:
            known = ", ".join(f"{n}={v}" for n, v in card.options.items()) or "none"
            raise ValueError(f"'{part}' is no option of the scorer {card.name}; it has: {known}")
        found[name] = value
    return found
