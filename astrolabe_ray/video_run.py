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
"""Videos that can't be made, one on each worker at least, before any can: the next would hardly be better."""
MAX_NAMED = 10
"""Prompts in a message."""


class VideoProgress(Protocol):
    """Who is told how far it is."""

    def chunks(self, change: int) -> None:
        """So many chunks more; fewer than none when a batch is begun again."""
        ...

    def finished(self, task: VideoTask, record: Mapping[str, Any]) -> None: ...

    def left_out(self, task: VideoTask, failure: DataFailure) -> None:
        """It can't be made or scored."""
        ...


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
    _left_out: list[tuple[VideoTask, DataFailure]] = field(default_factory=list)

    async def make(self, tasks: Sequence[VideoTask], batch_size: int, kept: Sequence[Record] = ()) -> None:
        """Make `tasks`, whose records and those `kept` are the folder's results from then on.

        Produces: files and records. Waits for: free workers. Bounded by: the batches in flight. What is
        recorded need not be made again. A batch that can't be made or scored is made again video by video;
        what fails alone, too, is left out, and DataFailure raised in the end. Other failures end it at once.
        """
        self._records = self.folder.begin(kept)
        waiting = deque(batches(tasks, batch_size))
        per_worker = 1 if self.rewards is None else BATCHES_PER_WORKER
        not_failed = set(range(self.pool.capacity * per_worker))  # workers

        async def work(number: int) -> None:
            while waiting:
                batch = waiting.popleft()
                try:
                    await self._make_batch(batch)
                except DataFailure as failure:
                    task, *others = batch
                    if others:
                        waiting.extendleft((task,) for task in reversed(batch))
                        continue
                    self._leave_out(task, failure)
                    not_failed.discard(number)
                    if not (self._records or not_failed) and len(self._left_out) >= MAX_FAILURES:
                        raise self._summary(len(tasks)) from failure

        workers = [asyncio.ensure_future(work(number)) for number in sorted(not_failed)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self._left_out:
            raise self._summary(len(tasks))

    def _leave_out(self, task: VideoTask, failure: DataFailure) -> None:
        self._left_out.append((task, failure))
        self.progress.left_out(task, failure)
        if self.is_stream:
            self.folder.video(task).unlink(missing_ok=True)  # what there is of it

    def _summary(self, num_tasks: int) -> DataFailure:
        (task, failure), *_ = self._left_out
        if num_tasks == 1:
            return failure
        prompts = sorted({str(task.prompt_index) for task, _ in self._left_out}, key=int)
        named = ", ".join(prompts[:MAX_NAMED]) + (", ..." if len(prompts) > MAX_NAMED else "")
        rest = "all others are done" if self._records else "and none was made"
        return DataFailure(
            f"{len(self._left_out)} of {num_tasks} videos can't be made, {rest}. Prompts {named}; the first "
            f"was {task.prompt_index}, '{task.prompt}': {failure}"
        )

    async def _make_batch(self, tasks: Sequence[VideoTask]) -> None:
        receiver = _Receiver(self)
        self.folder.replace(tasks)
        try:
            made = await self.pool.make(tasks, receiver)
            scores = await self._scores(tasks, made)
        except DataFailure:
            receiver.begin(tasks)  # takes back what was counted
            raise
        finally:
            receiver.close()
        for number, task in enumerate(tasks):
            self._keep_files(task, made, number, receiver)
            record = self._record(task, made, scores[number] if scores else None)
            self._records[task.key] = record
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
