"""Makes many videos with a pool of workers, and keeps a record of each as soon as it is done. No Ray here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from astrolabe_ray.errors import DataFailure
from astrolabe_ray.report.run_dir import write_bytes
from astrolabe_ray.roles import RewardPool
from astrolabe_ray.types import PolicyVersion, Rollout, Scores
from astrolabe_ray.video_folder import GrowingFile, Record, Records, VideoFolder
from astrolabe_ray.video_tasks import FinishedVideos, VideoPiece, VideoPool, VideoTask

BATCHES_PER_WORKER = 2
"""In flight while videos are scored, so that no worker waits for scores."""
MAX_FAILURES = 3
"""Batches that fail before any succeeds: then it is not their data."""


class VideoProgress(Protocol):
    """Who is told how far it is."""

    def chunks(self, change: int) -> None:
        """So many chunks more; fewer than none when a batch is begun again."""
        ...

    def finished(self, task: VideoTask, record: Mapping[str, Any]) -> None: ...


@dataclass
class VideoRun:
    """Everything that stays the same while videos are made."""

    pool: VideoPool
    folder: VideoFolder
    progress: VideoProgress
    fps: int
    with_files: bool = True
    is_stream: bool = False
    rewards: RewardPool | None = None
    _records: Records = field(default_factory=dict)
    _num_made: int = 0
    _left_out: list[tuple[Sequence[VideoTask], DataFailure]] = field(default_factory=list)

    async def make(self, tasks: Sequence[VideoTask], batch_size: int, kept: Sequence[Record] = ()) -> None:
        """Make `tasks`, whose records and those `kept` are the folder's results from then on.

        Produces: files and records. Waits for: free workers. Bounded by: the batches in flight. What is
        recorded need not be made again. A batch that can't be made or scored does not keep the others from
        being made; raises DataFailure in the end, naming it. Any other failure ends it at once.
        """
        self._records = self.folder.begin(kept)
        waiting = deque(batches(tasks, batch_size))

        async def work() -> None:
            while waiting:
                batch = waiting.popleft()
                try:
                    await self._make_batch(batch)
                except DataFailure as failure:
                    self._leave_out(batch, failure)

        per_worker = 1 if self.rewards is None else BATCHES_PER_WORKER
        workers = [asyncio.ensure_future(work()) for _ in range(self.pool.capacity * per_worker)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self._left_out:
            raise self._summary(len(tasks))

    def _leave_out(self, batch: Sequence[VideoTask], failure: DataFailure) -> None:
        """Raises DataFailure once it can't be the batches' own fault."""
        self._left_out.append((batch, failure))
        if not self._num_made and len(self._left_out) >= MAX_FAILURES:
            raise failure

    def _summary(self, num_tasks: int) -> DataFailure:
        (batch, failure), *_ = self._left_out
        num_videos = sum(len(tasks) for tasks, _ in self._left_out)
        return DataFailure(
            f"{num_videos} of {num_tasks} videos are missing, the others are done. Prompt "
            f"{batch[0].prompt_index}, '{batch[0].prompt}', was the first: {failure}"
        )

    async def _make_batch(self, tasks: Sequence[VideoTask]) -> None:
        receiver = _Receiver(self)
        self.folder.replace(tasks)
        try:
            made = await self.pool.make(tasks, receiver)
            scores = await self._scores(tasks, made)
        finally:
            receiver.close()
        for number, task in enumerate(tasks):
            self._keep_files(task, made, number, receiver)
            record = self._record(task, made, scores[number] if scores else None)
            self._records[task.key] = record
            self._num_made += 1
            self.progress.finished(task, record)
        self.folder.write(self._records)

    async def _scores(self, tasks: Sequence[VideoTask], made: FinishedVideos) -> list[Scores]:
        if self.rewards is None:
            return []
        return await self.rewards.score(
            [
                Rollout(
                    group_id=f"video-{task.prompt_index}",
                    index=task.sample,
                    prompt=task.plan.scenes[0].prompt,
                    seed=task.seed,
                    policy_version=PolicyVersion(),
                    actor=made.worker,
                    latents=None,
                    views=views,
                )
                for task, views in zip(tasks, made.views, strict=True)
            ]
        )

    def _keep_files(self, task: VideoTask, made: FinishedVideos, number: int, receiver: _Receiver) -> None:
        if self.with_files and not self.is_stream:
            write_bytes(self.folder.video(task), made.parts[number])
        elif self.with_files:
            receiver.finish(task, made.parts[number])
        if made.sheets:
            write_bytes(self.folder.sheet(task), made.sheets[number])

    def _record(self, task: VideoTask, made: FinishedVideos, scores: Scores | None) -> Record:
        record: Record = {
            "id": task.prompt_index,
            "sample": task.sample,
            "prompt": task.prompt,
            "seed": task.seed,
            "video": self.folder.relative(self.folder.video(task)) if self.with_files else None,
            "sheet": self.folder.relative(self.folder.sheet(task)) if made.sheets else None,
            "num_frames": made.num_frames,
            "fps": self.fps,
            "seconds": round(made.seconds, 3),
            "sampling": made.sampling,
            "settings": task.fingerprint,
        }
        return record if scores is None else record | {"scores": scores.values}


class _Receiver:
    """Fulfils `VideoWatcher` for one batch: counts chunks, and writes what is streamed."""

    def __init__(self, run: VideoRun) -> None:
        self._run = run
        self._files: dict[tuple[int, int], GrowingFile] = {}
        self._num_chunks = 0

    def begin(self, tasks: Sequence[VideoTask]) -> None:
        self._run.progress.chunks(-self._num_chunks * len(tasks))
        self._num_chunks = 0
        self.close()
        if self._run.is_stream:
            self._files = {task.key: GrowingFile(self._run.folder.video(task)) for task in tasks}

    def take(self, tasks: Sequence[VideoTask], piece: VideoPiece) -> None:
        self._run.progress.chunks((piece.num_chunks - self._num_chunks) * len(tasks))
        self._num_chunks = piece.num_chunks
        for task, part in zip(tasks, piece.parts, strict=True):
            if self._run.is_stream:
                self._files[task.key].add(part)

    def finish(self, task: VideoTask, part: bytes) -> None:
        """The last bytes of a streamed file."""
        with self._run.folder.video(task).open("ab") as file:
            file.write(part)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def batches(tasks: Sequence[VideoTask], batch_size: int) -> list[tuple[VideoTask, ...]]:
    """Tasks in their order, in batches within which all scenes start and cut at the same chunks."""
    alike: dict[object, list[VideoTask]] = {}
    for task in tasks:
        alike.setdefault(task.plan.structure, []).append(task)
    found = [
        tuple(group[start : start + batch_size])
        for group in alike.values()
        for start in range(0, len(group), batch_size)
    ]
    return sorted(found, key=lambda batch: batch[0].key)
