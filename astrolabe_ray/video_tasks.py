"""The messages of `generate`: which videos to make, with what, and what comes back piece by piece.

    VideoTask + VideoModelSpec -> VideoPiece, VideoPiece, ..., FinishedVideos

Legend of axes: F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.types import FrameSpec

FRAMES_PER_LATENT_FRAME = 4


@dataclass(frozen=True)
class PlannedScene:
    """A scene of a video. Example: `PlannedScene("a blue square", start_chunk=10, is_cut=True)`."""

    prompt: str
    start_chunk: int
    is_cut: bool = False  # fresh memory and a fresh decoder at its start; the first scene is never one


@dataclass(frozen=True)
class VideoPlan:
    """When each scene of a video begins, and where the video ends. Chunks are all of one length."""

    scenes: tuple[PlannedScene, ...]
    num_chunks: int

    @property
    def structure(self) -> tuple[object, ...]:
        """Equal for videos that can be made in one batch: the prompts may differ."""
        return self.num_chunks, tuple((scene.start_chunk, scene.is_cut) for scene in self.scenes)

    def first_frame(self, chunk: int, chunk_frames: int, num_given: int = 0) -> int:
        """Number of the first frame of a chunk (or, for `num_chunks`, the number of frames).

        The first latent frame after the start and after each cut decodes to one frame, others to four.
        `num_given`: latent frames before the first chunk.
        """
        starts = 1 + sum(scene.is_cut for scene in self.scenes if scene.start_chunk < chunk)
        latent_frames = num_given + chunk * chunk_frames
        return FRAMES_PER_LATENT_FRAME * latent_frames - 3 * starts if latent_frames else 0


@dataclass(frozen=True)
class VideoTask:
    """One video to make."""

    prompt_index: int  # line of the prompt file, counted from 0 without blank lines
    sample: int  # among those of the same prompt
    prompt: str  # as it was written, scenes and their durations included
    seed: int  # of all its noise
    plan: VideoPlan
    fingerprint: str  # of everything that decides what the video is

    @property
    def key(self) -> tuple[int, int]:
        return self.prompt_index, self.sample


@dataclass(frozen=True)
class VideoModelSpec:
    """What a worker must load, and how it makes videos."""

    model: ModelConfig
    lora: str | None = None  # folder, merged into the model's weights
    initial: str | None = None  # .mp4 or .safetensors that every video goes on from
    device: str = "cpu"  # or "cuda"
    num_threads: int | None = None  # of torch; None: leave the process as it is
    low_memory: bool = False  # text encoder and VAE stay on the CPU and visit the device
    with_files: bool = True  # make mp4 files
    is_stream: bool = False  # the mp4 is playable while it grows
    with_sheets: bool = True  # draw a contact sheet of each video
    views: tuple[FrameSpec, ...] = ()  # views of each video for its scorers

    @property
    def looks_ahead(self) -> bool:
        """Whether a chunk is decoded beside the denoising of the next one: on a GPU with room for both."""
        return self.device == "cuda" and not self.low_memory


@dataclass(frozen=True)
class VideoPiece:
    """One chunk more of every video of a batch."""

    num_chunks: int  # made so far
    parts: tuple[bytes, ...]  # next bytes of each video's mp4 file; empty unless streamed


@dataclass(frozen=True)
class FinishedVideos:
    """What remains to be handed over when the last chunk is made."""

    num_frames: int  # of each video, those it went on from included
    seconds: float  # of work, for each video
    parts: tuple[bytes, ...]  # last bytes of each mp4 file
    sheets: tuple[bytes, ...]  # contact sheets as png files, or none
    worker: str
    sampling: str  # how it sampled, e.g. "sdpa attention in float32 on cpu"
    views: tuple[tuple[Any, ...], ...] = ()  # blobs, uint8 [F, 3, H, W], of each video


class VideoWatcher(Protocol):
    """Takes what a batch gives while it is made."""

    def begin(self, tasks: Sequence[VideoTask]) -> None:
        """The batch starts, maybe again after a worker died: what was taken of it before is void."""
        ...

    def take(self, tasks: Sequence[VideoTask], piece: VideoPiece) -> None: ...


class VideoPool(Protocol):
    """Workers that make videos, behind one door."""

    @property
    def capacity(self) -> int:
        """Batches that can be made at the same time."""
        ...

    async def start(self) -> None: ...

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        """Videos of equal `plan.structure`. Raises InfraFailure when retries are used up."""
        ...

    async def stop(self) -> None: ...
