"""Decodes one mp4 file in a process of its own: one that crashes or hangs FFmpeg takes nobody along.

The child, `python -m reward_servers.mp4_frames`, gets the file on stdin and answers with a line of JSON,
the shape or what is refused, and the frames behind it.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from astrolabe_ray.report.video import enlargement, shrunk
from reward_servers.uploads import Refused, UploadLimits, check_size

ROOT = Path(__file__).parents[1]
ROOM_BYTES = 1 << 30
"""Address space of the child besides its frames, which it holds twice."""


class Decoders:
    """At most `num_processes` children at a time; others wait their turn."""

    def __init__(self, limits: UploadLimits, num_processes: int) -> None:
        self._limits, self._room = limits, asyncio.Semaphore(num_processes)

    async def frames(self, content: bytes) -> np.ndarray:
        """uint8 [F, 3, H, W], read-only. Raises Refused for a file that is no video, or too large a one."""
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
            )
            try:
                answer, _ = await asyncio.wait_for(child.communicate(content), self._limits.decode_timeout_s)
            except asyncio.TimeoutError:
                raise Refused(
                    "bad_mp4",
                    f"decoding took over {self._limits.decode_timeout_s:g} s; cut or scale the video",
                ) from None
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode != 0:
            raise Refused(
                "bad_mp4", f"the decoder ended with {child.returncode}: the file is damaged or hostile"
            )
        return _answered(answer)


def _answered(answer: bytes) -> np.ndarray:
    """Frames of a child's answer. Raises Refused as the child did."""
    line, _, pixels = answer.partition(b"\n")
    facts = json.loads(line)
    if "code" in facts:
        raise Refused(facts["code"], facts["message"])
    return np.frombuffer(pixels, np.uint8).reshape(facts["shape"])


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
