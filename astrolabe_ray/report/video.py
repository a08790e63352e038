"""Videos as mp4 files that every browser plays."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

MIN_SIDE = 192
"""Pixels; smaller videos are enlarged by whole numbers without smoothing."""


def encode_mp4(video: np.ndarray, *, fps: int, comment: str) -> bytes:
    """`video` uint8 [F, 3, H, W] as H.264 in yuv420p; `comment` goes into the file's metadata."""
    _, _, height, width = video.shape
    factor = max(1, -(-MIN_SIDE // min(height, width)))
    big = video.repeat(factor, axis=2).repeat(factor, axis=3).transpose(0, 2, 3, 1)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        file.metadata["comment"] = comment
        stream = file.add_stream("libx264", rate=Fraction(fps), options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height * factor, width * factor, "yuv420p"
        for picture in big:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(content: bytes) -> tuple[np.ndarray, str]:
    """Frames uint8 [F, 3, H, W] of an mp4 file, and its comment."""
    with av.open(io.BytesIO(content)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        comment = file.metadata.get("comment", "")
    return np.stack(frames).transpose(0, 3, 1, 2), comment
