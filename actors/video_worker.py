"""Makes batches of videos and hands them over in pieces. A plain class: the pool makes Ray actors of it.

Legend: B videos of a batch, F frames, H height, W width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from actors.given_video import given_latents
from actors.interactive import Turn, VideoSession
from actors.memory_limits import memory_limits
from actors.scene_sheet import SceneSheet
from actors.video_models import VideoModels
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.report.video import Mp4Writer
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoPiece, VideoTask


class VideoWorker:
    """Owns the models. One call at a time."""

    def __init__(self, spec: VideoModelSpec, name: str) -> None:
        self.spec, self.name = spec, name

    def __repr__(self) -> str:
        return self.name

    def setup(self) -> None:
        """Load the models. Raises ConfigError when files are absent or do not fit, memory included."""
        if self.spec.num_threads is not None:
            torch.set_num_threads(self.spec.num_threads)
        with memory_limits(
            self.name,
            "loading the models",
            on_gpu="Try --low-memory, or another --base-model.",
            on_cpu="Use fewer --workers, or another --base-model.",
        ):
            self._models = VideoModels.load(self.spec)
        initial = self.spec.initial
        shorter = "Lower --height or --width, or give a shorter one."
        with memory_limits(self.name, f"reading {initial}", on_gpu=shorter, on_cpu=shorter):
            self._given_TCHW = None if initial is None else given_latents(self._models, initial)

    def make(self, tasks: Sequence[VideoTask]) -> Iterator[Any]:
        """Videos of equal plan structure: a VideoPiece for each chunk, then FinishedVideos without
        views, then each view (uint8 [F, 3, H, W]) of each video, which can travel on its own.

        Memory grows with the length only for the mp4 bytes that are not streamed, and for views.
        Raises ConfigError when the memory is too small, DataFailure for latents that are not finite.
        """
        with memory_limits(
            self.name,
            f"with {len(tasks)} videos at a time",
            on_gpu="Lower --batch-size or --window-frames, or try --low-memory.",
            on_cpu="Lower --batch-size, --window-frames, --height or --width.",
        ):
            yield from self._made(tasks)

    def _made(self, tasks: Sequence[VideoTask]) -> Iterator[Any]:
        start = time.perf_counter()
        outputs = [_Output(task, self.spec, self._num_given) for task in tasks]
        for number, frames in enumerate(self._session(tasks), start=1):
            parts = tuple(output.add(video) for output, video in zip(outputs, frames, strict=True))
            yield VideoPiece(max(0, number - self._num_given_chunks), parts)
        yield FinishedVideos(
            num_frames=outputs[0].num_frames,
            seconds=(time.perf_counter() - start) / len(tasks),
            parts=tuple(output.close() for output in outputs),
            sheets=tuple(output.sheet.png() for output in outputs if output.sheet is not None),
            worker=self.name,
            sampling=self._models.description,
        )
        for output in outputs:
            yield from output.views()

    @property
    def _num_given(self) -> int:
        return 0 if self._given_TCHW is None else len(self._given_TCHW)

    @property
    def _num_given_chunks(self) -> int:
        return self._num_given // self.spec.model.chunk_frames

    def _session(self, tasks: Sequence[VideoTask]) -> VideoSession:
        """Each scene is said for all videos at once, because their plans have one structure."""
        plans = [task.plan for task in tasks]
        assert len({plan.structure for plan in plans}) == 1, "videos of a batch must have equal structure"
        scenes = list(zip(*(plan.scenes for plan in plans), strict=True))
        turns = {
            scene[0].start_chunk: Turn(tuple(part.prompt for part in scene), scene[0].is_cut)
            for scene in scenes[1:]
        }
        return VideoSession(
            self._models,
            [part.prompt for part in scenes[0]],
            [task.seed for task in tasks],
            num_chunks=plans[0].num_chunks,
            turns=turns,
            given_TCHW=self._given_TCHW,
            look_ahead=self.spec.looks_ahead,
        )


class _Output:
    """What becomes of one video's frames: file, contact sheet, views."""

    def __init__(self, task: VideoTask, spec: VideoModelSpec, num_given: int) -> None:
        m = spec.model
        self._spec, self.num_frames = spec, 0
        self._writer: Mp4Writer | None = None
        if spec.with_files:
            self._writer = Mp4Writer(
                height=m.height, width=m.width, fps=m.fps, comment=comment(task, spec), growing=spec.is_stream
            )
        self.sheet: SceneSheet | None = None
        if spec.with_sheets:
            self.sheet = SceneSheet(task.plan, chunk_frames=m.chunk_frames, fps=m.fps, num_given=num_given)
        self._kept: list[np.ndarray] = []  # for the views

    def add(self, video: np.ndarray) -> bytes:
        self.num_frames += len(video)
        if self.sheet is not None:
            self.sheet.add(video)
        if self._spec.views:
            self._kept.append(video)
        return b"" if self._writer is None else self._writer.add(video)

    def close(self) -> bytes:
        return b"" if self._writer is None else self._writer.close()

    def views(self) -> Iterator[np.ndarray]:
        for view in self._spec.views:
            yield derive_view(np.concatenate(self._kept), view)


def comment(task: VideoTask, spec: VideoModelSpec) -> str:
    """What a file says about itself, as JSON."""
    facts = {
        "prompt": task.prompt,
        "seed": task.seed,
        "lora": spec.lora,
        "initial_video": spec.initial,
        "settings": task.fingerprint,
        "model": spec.model.model_dump(mode="json"),
    }
    return json.dumps(facts, ensure_ascii=False)
