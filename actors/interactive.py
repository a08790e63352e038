"""Videos that grow chunk by chunk, that can be watched at once, and told what comes next.

    session = VideoSession(models, ["a small red circle moves left on a black background"], [7], num_chunks=9)
    for number, frames in enumerate(session):        # uint8 [B, F, 3, H, W], as soon as each chunk is ready
        if number == 4:
            session.say("a large blue star rotates in place on a white background")

Memory does not grow with the length, as long as the model's window is bounded.

Legend: B batch, T latent frames, F frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.decoder import to_uint8
from actors.video_models import VideoModels
from astrolabe_ray.errors import DataFailure

PIXELS_PER_LATENT = 8


@dataclass(frozen=True)
class Turn:
    """What is said at the start of a chunk: a prompt for each video, taken over softly or after a cut."""

    prompts: tuple[str, ...]
    is_cut: bool = False


@dataclass(frozen=True)
class _Chunk:
    """Clean latents on their way to the decoder."""

    latents_BTCHW: Tensor
    is_cut: bool
    ready: torch.cuda.Event | None  # when the GPU has computed them; None without a stream to tell


class VideoSession:
    """B videos that are denoised, decoded and handed out chunk by chunk; iterate over it once.

    With `look_ahead` the next chunk is denoised by another thread while one is decoded and looked at, on
    a GPU in streams of their own; what is said then reaches the chunk after it. Without, it reaches the
    next one. The pixels are the same.
    """

    def __init__(
        self,
        models: VideoModels,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_chunks: int,
        turns: Mapping[int, Turn] | None = None,
        given_TCHW: Tensor | None = None,
        look_ahead: bool = False,
    ) -> None:
        """`turns`: what is said at the start of which chunk, if that is known before.

        `given_TCHW`: clean latents, a whole number of chunks, that all videos go on from; they come
        first, in addition to the `num_chunks`.
        """
        m = models.spec.model
        self._models, self._num_chunks, self._batch = models, num_chunks, len(seeds)
        self._given_TCHW, self._look_ahead = given_TCHW, look_ahead
        self._turns, self._num_begun = dict(turns or {}), 0
        num_given = 0 if given_TCHW is None else len(given_TCHW)
        self._generation = models.sampler.begin(
            models.encode(prompts),
            seeds,
            num_given + num_chunks * m.chunk_frames,
            m.height // PIXELS_PER_LATENT,
            m.width // PIXELS_PER_LATENT,
        )
        self._decoding = models.vae.stream(self._batch)
        is_beside = look_ahead and models.visits.device.type == "cuda"
        self._lane = torch.cuda.Stream(models.visits.device) if is_beside else None

    def say(self, prompts: str | Sequence[str], *, cut: bool = False) -> None:
        """Go on with another prompt for all videos, or with one for each; `cut`: nothing before is seen.

        Takes effect with the next chunk that is not begun. Call it between two chunks.
        """
        each = (prompts,) * self._batch if isinstance(prompts, str) else tuple(prompts)
        assert len(each) == self._batch, f"{len(each)} prompts for {self._batch} videos"
        self._turns[self._num_begun] = Turn(each, cut)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames uint8 [B, F, 3, H, W] of each chunk. Raises DataFailure for latents that are not finite."""
        yield from self._take_given()
        if not self._look_ahead:
            while self._num_begun < self._num_chunks:
                yield self._decoded(self._denoised(self._begin()))
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="denoise") as thread:
            ahead: Future[_Chunk] | None = thread.submit(self._denoised, self._begin())
            while ahead is not None:
                chunk = ahead.result()
                more = self._num_begun < self._num_chunks
                ahead = thread.submit(self._denoised, self._begin()) if more else None
                yield self._decoded(chunk)

    def _begin(self) -> int:
        """Number of the next chunk, from now on too late to be told anything."""
        number, self._num_begun = self._num_begun, self._num_begun + 1
        return number

    def _take_given(self) -> Iterator[np.ndarray]:
        if self._given_TCHW is None:
            return
        given_BTCHW = self._given_TCHW.to(self._models.visits.device).expand(self._batch, -1, -1, -1, -1)
        self._generation.follow(given_BTCHW)
        for chunk_BTCHW in given_BTCHW.split(self._models.spec.model.chunk_frames, dim=1):
            yield self._decoded(_Chunk(chunk_BTCHW, False, self._mark()))

    def _denoised(self, number: int) -> _Chunk:
        turn = self._turns.pop(number, None)
        if turn is not None:
            text_kv = self._models.encode(turn.prompts)
            (self._generation.cut if turn.is_cut else self._generation.switch)(text_kv)
        latents_BTCHW = self._generation.extend()
        return _Chunk(latents_BTCHW, turn is not None and turn.is_cut, self._mark())

    def _mark(self) -> torch.cuda.Event | None:
        if self._lane is None:
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _decoded(self, chunk: _Chunk) -> np.ndarray:
        if chunk.is_cut:
            self._decoding = self._models.vae.stream(self._batch)
        with self._models.visits.of(self._models.vae), self._beside_denoising(chunk):
            if not bool(chunk.latents_BTCHW.isfinite().all()):
                raise DataFailure(
                    "the model gave latents that are not finite; check its checkpoint and LoRA, or use "
                    "dtype float32"
                )
            return to_uint8(self._decoding.decode(chunk.latents_BTCHW))

    def _beside_denoising(self, chunk: _Chunk) -> torch.cuda.StreamContext | nullcontext[None]:
        """The decoder's own stream, which waits for the chunk and for nothing after it."""
        if self._lane is None or chunk.ready is None:
            return nullcontext()
        self._lane.wait_event(chunk.ready)
        chunk.latents_BTCHW.record_stream(self._lane)
        return torch.cuda.stream(self._lane)
