"""Decodes one mp4 file in a process of its own: one that crashes or hangs FFmpeg takes nobody along.

The child, `python -m reward_servers.mp4_frames`, gets the file on stdin and answers with a line of JSON,
the shape or what is refused, and the frames behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.report.video import enlargement, shrunk
from reward_servers.uploads import Refused, UploadLimits, check_size

ROOT = Path(__file__).parents[1]
PIECE_BYTES = 1 << 20
"""Of a child's answer, read at once."""
END_TIMEOUT_S = 5.0
NO_ANSWER = "what the decoder says is no video: the file is damaged or hostile"
ROOM_BYTES = 1 << 30
"""Address space of the child besides its frames, which it holds twice."""


class Decoders:
    """At most `num_processes` children at a time; others wait their turn."""

    def __init__(self, limits: UploadLimits, num_processes: int) -> None:
        self._limits, self._room = limits, asyncio.Semaphore(num_processes)

    async def frames(self, content: bytes, take: Callable[[int], None]) -> np.ndarray:
        """uint8 [F, 3, H, W]. `take` is told how many bytes they are before they are held.

        Raises Refused for a file that is no video, or too large a one, InfraFailure when somebody ended the
        child, and what `take` raises.
        """
        async with self._room:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                __name__,
                json.dumps(asdict(self._limits)),
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                return await asyncio.wait_for(
                    _conversation(child, content, self._limits, take), self._limits.decode_timeout_s
                )
            except asyncio.TimeoutError:
                raise Refused(
                    "bad_mp4",
                    f"decoding took over {self._limits.decode_timeout_s:g} s; cut or scale the video",
                ) from None
            finally:
                await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kills a child that still runs. A pipe that nobody reads to its end would stay open."""
    assert child.stdout is not None
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_drained(child.stdout), END_TIMEOUT_S)
    await child.wait()


async def _drained(stream: asyncio.StreamReader) -> None:
    while await stream.read(PIECE_BYTES):
        pass


async def _conversation(
    child: asyncio.subprocess.Process, content: bytes, limits: UploadLimits, take: Callable[[int], None]
) -> np.ndarray:
    """The file to the child, its frames from it. Raises Refused, InfraFailure and what `take` raises."""
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(ConnectionError):  # of a child that has ended; its exit status tells more
        child.stdin.write(content)
        await child.stdin.drain()
        child.stdin.close()
    try:
        line = await child.stdout.readline()
    except ValueError:  # it is endless
        raise Refused("bad_mp4", NO_ANSWER) from None
    if line.endswith(b"\n"):
        shape = _shape(line, limits)
        take(math.prod(shape))
        video = np.empty(shape, np.uint8)
        if await _filled(child.stdout, video) and await child.wait() == 0:
            return video
    status = await child.wait()
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        raise InfraFailure("the decoder was ended from outside, perhaps for lack of memory; try again")
    raise Refused("bad_mp4", f"the decoder ended with {status}: the file is damaged or hostile")


def _shape(line: bytes, limits: UploadLimits) -> tuple[int, int, int, int]:
    """Of the frames that follow. Raises Refused as the child did, and for what no honest child says."""
    try:
        facts = json.loads(line)
        if "code" in facts:
            raise Refused(facts["code"], facts["message"])
        frames, channels, height, width = map(int, facts["shape"])
    except (ValueError, TypeError, KeyError):
        raise Refused("bad_mp4", NO_ANSWER) from None
    check_size(frames, height, width, limits)
    if channels != 3:
        raise Refused("bad_mp4", NO_ANSWER)
    return frames, channels, height, width


async def _filled(stream: asyncio.StreamReader, video: np.ndarray) -> bool:
    """Whether all its pixels came. Raises Refused for what is behind them."""
    rest = video.data.cast("B")
    while piece := await stream.read(PIECE_BYTES):
        if len(piece) > len(rest):
            raise Refused("bad_mp4", NO_ANSWER)
        rest[: len(piece)] = piece
        rest = rest[len(piece) :]
    return not rest


def read_mp4(content: bytes, limits: UploadLimits) -> np.ndarray:
    """Frames uint8 [F, 3, H, W], decoded in this process. Raises Refused.

    What this project enlarged for people is brought back to the size that the model made.

    Only the mp4 demuxer is let near the file: others open what a file names.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(io.BytesIO(content), format="mov") as file:
            frames = list(_checked(file, limits))
            metadata = dict(file.metadata)
    except FFmpegError as reason:
        raise Refused("bad_mp4", f"the mp4 can't be decoded: {reason}"[:200]) from None
    if not frames:
        raise Refused("no_frames", "no frame of the mp4 can be decoded")
    video = np.stack(frames).transpose(0, 3, 1, 2)
    factor = enlargement(metadata, *video.shape[2:])
    check_size(len(video), video.shape[2] // factor, video.shape[3] // factor, limits)  # the file says which
    return shrunk(video, factor) if factor > 1 else video


def _checked(file: Any, limits: UploadLimits) -> Iterator[np.ndarray]:
    """Pictures [H, W, 3]. What the header says is checked first, then each frame, as headers lie."""
    if not file.streams.video:
        raise Refused("bad_mp4", "the mp4 has no picture")
    stream = file.streams.video[0]
    height, width = stream.height, stream.width
    if stream.frames:
        check_size(stream.frames, height, width, limits)
    stream.thread_count, number = 1, 0
    for number, frame in enumerate(file.decode(stream), start=1):
        if (frame.height, frame.width) != (height, width):
            raise Refused("bad_mp4", f"frame {number} is {frame.height}x{frame.width}, not {height}x{width}")
        check_size(number, height, width, limits)
        yield frame.to_ndarray(format="rgb24")
    if number < stream.frames:
        raise Refused("bad_mp4", f"the mp4 promises {stream.frames} frames, {number} decode; encode it anew")


def main() -> None:
    """The child. What it could not allocate is an error of the file's, too."""
    limits = UploadLimits(**json.loads(sys.argv[1]))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    room = used + ROOM_BYTES + 3 * limits.max_video_bytes
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    try:
        video = read_mp4(sys.stdin.buffer.read(), limits)
    except Refused as refused:
        sys.stdout.write(json.dumps({"code": refused.code, "message": str(refused)}) + "\n")
        return
    sys.stdout.write(json.dumps({"shape": video.shape}) + "\n")
    sys.stdout.flush()
    for frame in video:
        sys.stdout.buffer.write(np.ascontiguousarray(frame).tobytes())


if __name__ == "__main__":
    main()
