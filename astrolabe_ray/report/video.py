"""Videos as mp4 files that every browser plays."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MIN_SIDE = 192
"""Pixels; smaller videos are enlarged by whole numbers without smoothing."""
MAX_SIDE = 4096
"""Pixels that no enlargement goes beyond; H.264 ends at 16384."""
FRAGMENTS = {"movflags": "empty_moov+default_base_moof+frag_every_frame"}
"""Of a file that can be played while it grows: a header without an index, then a fragment a frame."""

_ENLARGED = "enlarged {} times"
"""What the file's description says then, for those who want the pixels that were given."""

SAME_FILE_EVERY_TIME = "cpu-independent=1"
"""Without it equal frames give files of different lengths, from one call to the next."""


class Mp4Writer:
    """H.264 in yuv420p, fed with frames as they come.

    `add` and `close` return the file's next bytes. Only a `growing` file gives any before `close`; it
    is larger by about a tenth.
    """

    def __init__(self, *, height: int, width: int, fps: int, comment: str, growing: bool = False) -> None:
        """`comment` goes into the file's metadata."""
        self._factor = _factor(height, width)
        self._bytes: _Pipe | io.BytesIO = _Pipe() if growing else io.BytesIO()
        self._file: Any = av.open(self._bytes, "w", format="mp4", options=FRAGMENTS if growing else {})
        self._file.metadata["comment"] = comment
        if self._factor > 1:
            self._file.metadata["description"] = _ENLARGED.format(self._factor)
        options = {"crf": "18", "preset": "veryfast", "x264-params": SAME_FILE_EVERY_TIME}
        options |= {"tune": "zerolatency"} if growing else {}
        self._stream: Any = self._file.add_stream("libx264", rate=Fraction(fps), options=options)
        self._stream.height, self._stream.width = height * self._factor, width * self._factor
        self._stream.pix_fmt = "yuv420p"

    def add(self, video: np.ndarray) -> bytes:
        """`video` uint8 [F, 3, H, W]: the next frames."""
        big = video.repeat(self._factor, axis=2).repeat(self._factor, axis=3).transpose(0, 2, 3, 1)
        for picture in big:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            self._file.mux(self._stream.encode(frame))
        return self._bytes.take() if isinstance(self._bytes, _Pipe) else b""

    def close(self) -> bytes:
        self._file.mux(self._stream.encode())
        self._file.close()
        return self._bytes.take() if isinstance(self._bytes, _Pipe) else self._bytes.getvalue()


def _factor(height: int, width: int) -> int:
    """How many times a video is enlarged."""
    wanted = -(-MIN_SIDE // min(height, width))
    return max(1, min(wanted, MAX_SIDE // max(height, width)))


class _Pipe:
    """A file that can only be written to, and forgets what was taken from it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        content, self._parts = b"".join(self._parts), []
        return content


def encode_mp4(video: np.ndarray, *, fps: int, comment: str) -> bytes:
    """`video` uint8 [F, 3, H, W] as a file; `comment` goes into its metadata."""
    _, _, height, width = video.shape
    writer = Mp4Writer(height=height, width=width, fps=fps, comment=comment)
    return writer.add(video) + writer.close()


def frames_of(path: Path) -> Iterator[np.ndarray]:
    """The frames of a file, uint8 [3, H, W], one by one. Raises OSError or ValueError if it is no video."""
    with av.open(str(path)) as file:
        _require_pictures(file)
        for frame in file.decode(video=0):
            yield frame.to_ndarray(format="rgb24").transpose(2, 0, 1)


def enlargement(metadata: Mapping[str, str], height: int, width: int) -> int:
    """How many times `Mp4Writer` enlarged a file of this size; 1 for files that others wrote."""
    found = re.fullmatch(_ENLARGED.format(r"(\d{1,3})"), metadata.get("description", ""))
    factor = int(found[1]) if found else 1
    return factor if factor and height % factor == width % factor == 0 else 1


def shrunk(video: np.ndarray, factor: int) -> np.ndarray:
    """`video` uint8 [F, 3, H, W] with the mean of each square of `factor` x `factor` pixels."""
    frames, colours, height, width = video.shape
    squares = video.reshape(frames, colours, height // factor, factor, width // factor, factor)
    return squares.mean(axis=(3, 5), dtype=np.float32).round().astype(np.uint8)


def decode_mp4(content: bytes) -> tuple[np.ndarray, str]:
    """Frames uint8 [F, 3, H, W] of an mp4 file, and its comment. Raises OSError, ValueError if it is none."""
    with av.open(io.BytesIO(content)) as file:
        _require_pictures(file)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        comment = file.metadata.get("comment", "")
    return np.stack(frames).transpose(0, 3, 1, 2), comment


def _require_pictures(file: Any) -> None:
    if not file.streams.video:
        raise ValueError("it holds no pictures")
