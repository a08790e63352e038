"""Videos as files: what goes in comes out, near enough to be judged by eye."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest

from astrolabe_ray.report.gallery import LocalGallery
from astrolabe_ray.report.video import decode_mp4, encode_mp4
from astrolabe_ray.runtime.local_store import LocalBlobStore
from tests.small_run import HOSTILE, moving_square


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def test_frames_come_back_in_order_and_close_to_the_original() -> None:
    """Frames that are dropped, doubled, swapped in colour or upside down."""
    video = moving_square(frames=9)
    video[:, 0] += np.arange(9, dtype=np.uint8)[:, None, None] * 20  # redder with time
    decoded, _ = decode_mp4(encode_mp4(video, fps=8, comment=""))
    assert decoded.shape == (9, 3, 192, 192), "32 pixels are enlarged by 6"
    small = decoded[:, :, 3::6, 3::6]
    assert psnr(small, video) > 25  # 4:2:0 blurs colour at edges
    distance = [[psnr(a, b) for b in video] for a in small]
    assert [int(np.argmax(row)) for row in distance] == list(range(9))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, (192, 192)), (64, 112, (192, 336)), (192, 320, (192, 320))]
)
def test_small_videos_are_enlarged_by_whole_numbers(height: int, width: int, size: tuple[int, int]) -> None:
    """A browser that smooths 32 pixels shows nothing of what the model drew."""
    flat = np.full((2, 3, height, width), 100, np.uint8)
    decoded, _ = decode_mp4(encode_mp4(flat, fps=8, comment=""))
    assert decoded.shape == (2, 3, *size)
    assert abs(decoded.astype(int) - 100).max() <= 3


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(16, 4096, (16, 4096)), (1024, 16, (4096, 64)), (16, 1504, (32, 3008)), (16, 8192, (16, 8192))],
)
def test_a_narrow_video_is_not_enlarged_beyond_what_can_be_encoded(
    height: int, width: int, size: tuple[int, int]
) -> None:
    """16 pixels become 192, and 4096 become 49152, which the encoder refuses with a traceback."""
    decoded, _ = decode_mp4(encode_mp4(np.full((1, 3, height, width), 100, np.uint8), fps=8, comment=""))
    assert decoded.shape == (1, 3, *size)


@pytest.mark.parametrize("fps", [8, 16])
def test_files_play_at_the_speed_of_the_model_in_every_browser(fps: int) -> None:
    """A wrong time base plays four seconds in one; 4:4:4 plays in no phone."""
    with av.open(io.BytesIO(encode_mp4(moving_square(frames=17), fps=fps, comment=""))) as file:
        stream = file.streams.video[0]
        assert stream.average_rate == fps
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [frame.time for frame in file.decode(stream)]
    assert times == pytest.approx([number / fps for number in range(17)])


async def test_a_file_says_what_it_shows() -> None:
    """A video that was copied out of its folder and can't be traced to prompt and seed."""
    gallery = LocalGallery(LocalBlobStore())
    comment = f"{HOSTILE} | seed 9223372036854775807 | policy 0.60 | after"
    _, read = decode_mp4(await gallery.encode(moving_square(frames=2), fps=8, comment=comment))
    assert read == comment
