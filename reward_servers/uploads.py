"""Videos as strangers send them: an npy array or an mp4 file, looked at before anything is allocated."""

from __future__ import annotations

import io
import math
import tokenize
from dataclasses import dataclass

import numpy as np

from astrolabe_ray.errors import DataFailure

NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 1024
"""Of an npy file; that of a video takes 118."""
MIN_SIDE = 8
"""Pixels."""
MAX_RATIO = 8
"""Of a frame's longer side to its shorter one. Scorers scale by one side, and the other grows along."""


class Refused(DataFailure):
    """An upload that is not scored. `code` is for programs. Example: `Refused("no_frames", "...")`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # what a pickle builds it from
        self.code = code

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class UploadLimits:
    """What is accepted. The decoded size is what counts for memory: a small mp4 may hold hours."""

    max_bytes: int = 256 << 20  # of a request's body
    max_frames: int = 1024
    max_pixels: int = 1920 * 1088  # of a frame
    max_video_bytes: int = 1 << 30  # decoded, 3 bytes a pixel
    max_prompt_chars: int = 4000
    max_windows: int = 32  # of a curve
    decode_timeout_s: float = 60.0


def check_size(frames: int, height: int, width: int, limits: UploadLimits) -> None:
    """Raises Refused for a video that is empty or larger than the limits; nothing of it was read yet."""
    if frames < 1:
        raise Refused("no_frames", "the video has no frames")
    if min(height, width) < MIN_SIDE:
        raise Refused("wrong_shape", f"frames of {height}x{width} pixels; each side needs {MIN_SIDE} or more")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise Refused(
            "wrong_shape",
            f"frames of {height}x{width} pixels; a side may be {MAX_RATIO} times the other at most; cut it",
        )
    if frames > limits.max_frames:
        raise Refused("too_large", f"{frames} frames; at most {limits.max_frames} are scored, so cut it")
    if height * width > limits.max_pixels:
        raise Refused(
            "too_large", f"frames of {height}x{width}; at most {limits.max_pixels} pixels are taken"
        )
    size = 3 * frames * height * width
    if size > limits.max_video_bytes:
        raise Refused(
            "too_large", f"{size} bytes once decoded; at most {limits.max_video_bytes} are taken, so scale it"
        )


def kind_of(content: bytes) -> str:
    """`npy` or `mp4`, by how the file begins. Raises Refused for anything else."""
    if content.startswith(NPY_MAGIC):
        return "npy"
    if content[4:8] == b"ftyp":
        return "mp4"
    what = "an empty file" if not content else f"a file that begins with {content[:8]!r}"
    raise Refused("unknown_format", f"{what}; videos are mp4 files or npy arrays (uint8)")


def read_npy(content: bytes, limits: UploadLimits) -> np.ndarray:
    """Frames uint8 [F, 3, H, W] of an npy file that holds [F, 3, H, W] or [F, H, W, 3].

    Raises Refused. The header is held against the limits and against the file's length first, so that one
    that claims gigabytes costs nothing. Pickles are never read.
    """
    shape, dtype, start = _npy_header(content)
    if dtype != np.uint8:
        hint = "; scale floats to 0..255 (there is no NaN in pixels) and round" if dtype.kind == "f" else ""
        raise Refused("wrong_dtype", f"the array is {dtype}; needed is uint8{hint}")
    channels_first = _is_channels_first(shape)
    height, width = (shape[2], shape[3]) if channels_first else (shape[1], shape[2])
    check_size(shape[0], height, width, limits)
    if len(content) - start != math.prod(shape):
        raise Refused(
            "bad_npy",
            f"the header promises {math.prod(shape)} bytes of pixels, the file has {len(content) - start}",
        )
    video = np.load(io.BytesIO(content), allow_pickle=False)
    return video if channels_first else np.ascontiguousarray(video.transpose(0, 3, 1, 2))


def _npy_header(content: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, dtype and where the data begin. Raises Refused for a header that can't be read."""
    file = io.BytesIO(content)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        read = readers[np.lib.format.read_magic(file)]
        shape, _, dtype = read(file, max_header_size=MAX_HEADER_BYTES)
    except KeyError as version:
        raise Refused(
            "bad_npy", f"npy format {version} is not for plain arrays; write it with np.save"
        ) from None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as reason:
        raise Refused("bad_npy", f"the npy header can't be read: {reason}"[:200]) from None
    return shape, dtype, file.tell()


def _is_channels_first(shape: tuple[int, ...]) -> bool:
    """Raises Refused for a shape that is not, or may be either, of the two layouts."""
    wanted = "needed is [F, 3, H, W] or [F, H, W, 3]"
    if len(shape) != 4 or min(shape) < 0:
        raise Refused("wrong_shape", f"the array is {list(shape)}; {wanted}")
    if (shape[1] == 3) == (shape[3] == 3):
        either = "may be both" if shape[1] == 3 else "is neither"
        raise Refused("wrong_shape", f"the array is {list(shape)}, which {either}; {wanted}")
    return shape[1] == 3
