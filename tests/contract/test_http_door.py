"""The door over real HTTP: scores equal those in process, every bad input has its name, the door stays up."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.data.sprites.captions import SpriteCaption
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.errors import DataFailure, InfraFailure
from astrolabe_ray.report.video import decode_mp4, encode_mp4
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from astrolabe_ray.video_scoring import score_video
from reward_servers.local_pool import LocalRewardPool
from tests.local_door import KEYS, RED, TOKEN, Answer, ask, form, local_door, npy, post

CAPTION = SpriteCaption("small", "red", "circle", "moves left", "black")
GOOD = np.zeros((9, 3, 16, 16), np.uint8)


@pytest.fixture(scope="module")
def door() -> Iterator[str]:
    with local_door(max_frames=64, max_video_bytes=3 * 64 * 256 * 256) as url:
        yield url


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render_clips([CAPTION], seed=5)[0]


def in_process(video: np.ndarray, prompt: str = RED, keys: Sequence[str] = KEYS) -> dict[str, float]:
    pool = LocalRewardPool([RewardConfig(key=key) for key in keys])
    return asyncio.run(score_video(pool, video, prompt, lambda array: array))


def test_scores_through_the_door_equal_those_in_process(door: str, clip: np.ndarray) -> None:
    """Frames that are turned, shifted or in another colour order on their way."""
    wanted = in_process(clip)
    assert wanted["tiny_clip"] > 0.8
    for array in (clip, np.ascontiguousarray(clip.transpose(0, 2, 3, 1)), np.asfortranarray(clip)):
        answer = post(door, npy(array))
        assert answer.status == 200, answer
        assert answer.body["scores"] == pytest.approx(wanted, abs=1e-6)
    assert (answer.body["num_frames"], answer.body["height"], answer.body["width"]) == (33, 32, 32)


def test_an_mp4_is_scored_as_its_decoded_frames(door: str, clip: np.ndarray) -> None:
    """A decoder in another process that drops or swaps frames."""
    file = encode_mp4(clip, fps=8, comment="")
    answer = post(door, file, rewards="motion_quality, tiny_clip")
    assert answer.status == 200, answer
    small = derive_view(decode_mp4(file)[0], FrameSpec(height=32, width=32))
    wanted = in_process(small, keys=("tiny_clip", "motion_quality"))
    assert answer.body["scores"] == pytest.approx(wanted, abs=1e-6)
    assert (answer.body["height"], answer.body["curves"]) == (32, {}), "not as it was enlarged for people"


def test_an_mp4_that_others_wrote_is_scored_as_it_is(door: str, clip: np.ndarray) -> None:
    """A large picture that is taken for an enlarged small one."""
    large = clip.repeat(6, axis=2).repeat(6, axis=3)
    answer = post(door, encode_mp4(large, fps=8, comment=""), rewards="image_quality")
    assert (answer.body["height"], answer.body["width"]) == (192, 192)


def test_curves_are_scores_of_single_frames_and_of_windows(door: str, clip: np.ndarray) -> None:
    """A curve that is shifted against the video, or that shows the whole video's score at every place."""
    curves = post(door, npy(clip), points=3).body["curves"]
    assert [(p["first"], p["end"]) for p in curves["image_quality"]] == [(0, 1), (16, 17), (32, 33)]
    assert [(p["first"], p["end"]) for p in curves["motion_quality"]] == [(0, 11), (11, 22), (22, 33)]
    for key, points in curves.items():
        for point in points:
            part = clip[point["first"] : point["end"]]
            assert point["score"] == pytest.approx(in_process(part, keys=[key])[key], abs=1e-6)
    assert len({point["score"] for point in curves["motion_quality"]}) == 3


def test_the_list_says_what_each_reward_looks_at(door: str) -> None:
    """A caller who has to guess which frames count, or how large a file may be."""
    answer = ask(f"{door}/v1/rewards")
    by_key = {reward["key"]: reward for reward in answer.body["rewards"]}
    assert list(by_key) == list(KEYS)
    assert by_key["tiny_clip"]["num_frames"] == 4 and by_key["tiny_clip"]["height"] == 32
    assert by_key["motion_quality"]["num_frames"] is None
    assert [by_key[key]["frame_by_frame"] for key in KEYS] == [True, False, True]
    assert answer.body["limits"]["max_frames"] == 64


def test_routes_are_described_for_programs_and_for_people(door: str) -> None:
    """A description that asks another machine for its scripts is blank where there is no internet."""
    described = ask(f"{door}/openapi.json", token=None).body
    assert described["paths"]["/v1/scores"]["post"]["responses"].keys() >= {"200", "401", "413", "422", "503"}
    assert described["paths"]["/v1/scores"]["post"]["security"] == [{"HTTPBearer": []}]
    for path in ("/", "/docs"):
        page = ask(door + path, token=None)
        addresses = set(re.findall(r"https?://[^\"' <]+", page.body))
        assert page.status == 200 and addresses <= {"http://www.w3.org/2000/svg"}, "a name, not an address"
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "POST /v1/scores" in page.body and "uint8 [F, 3, H, W]" in page.body


def bomb() -> bytes:
    """An npy header that claims 10 GB, and nothing behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (40_000, 3, 288, 288)}
    )
    return file.getvalue()


def short(array: np.ndarray) -> bytes:
    return npy(array)[:-1]


def silent_mp4() -> bytes:
    """An mp4 with sound only."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def clip_mp4(frames: int = 9, side: int = 192) -> bytes:
    return encode_mp4(np.zeros((frames, 3, side, side), np.uint8), fps=8, comment="")


def torn_mp4() -> bytes:
    """The second half of the pictures is overwritten."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 3, 64, 64), np.uint8)
    file = bytearray(encode_mp4(noise, fps=8, comment=""))
    start, length = file.index(b"mdat") + 4, int.from_bytes(file[file.index(b"mdat") - 4 :][:4], "big")
    file[start + length // 2 : start + length - 8] = bytes(length // 2 - 8)
    return bytes(file)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("video.npy", npy(GOOD))
    return file.getvalue()


NAN = np.full((9, 3, 16, 16), np.nan, np.float32)


@pytest.mark.parametrize(
    ("file", "status", "error", "words"),
    [
        (npy(NAN), 422, "wrong_dtype", "float32; needed is uint8; scale floats to 0..255 (there is no NaN"),
        (npy(GOOD.astype(np.int64)), 422, "wrong_dtype", "int64"),
        (npy(np.array([{"a": 1}] * 4), allow_pickle=True), 422, "wrong_dtype", "object"),
        (npy(GOOD[:0]), 422, "no_frames", "no frames"),
        (npy(GOOD[0]), 422, "wrong_shape", "[3, 16, 16]; needed is [F, 3, H, W] or [F, H, W, 3]"),
        (npy(GOOD[:, :1]), 422, "wrong_shape", "is neither"),
        (npy(GOOD[..., :3]), 422, "wrong_shape", "may be both"),
        (npy(GOOD[..., :4]), 422, "wrong_shape", "16x4"),
        (npy(np.zeros((1, 3, 8, 65), np.uint8)), 422, "wrong_shape", "8 times the other"),
        (npy(np.zeros((1, 3, 2600, 8), np.uint8)), 422, "wrong_shape", "2600x8"),
        (bomb(), 413, "too_large", "40000 frames"),
        (short(GOOD), 422, "bad_npy", "promises 6912 bytes of pixels, the file has 6911"),
        (npy(GOOD)[:20], 422, "bad_npy", "header"),
        (b"\x93NUMPY\x09\x00", 422, "bad_npy", "format (9, 0)"),
        (npy(np.zeros((64, 3, 257, 256), np.uint8)), 413, "too_large", "once decoded"),
        (clip_mp4(frames=65), 413, "too_large", "65 frames"),
        (clip_mp4()[:-200], 422, "bad_mp4", "promises 9 frames, 0 decode"),
        (torn_mp4(), 422, "bad_mp4", "can't be decoded"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(100), 422, "bad_mp4", "can't be decoded"),
        (silent_mp4(), 422, "bad_mp4", "no picture"),
        (b"", 415, "unknown_format", "an empty file"),
        (b"GIF89a" + bytes(100), 415, "unknown_format", "GIF89a"),
        (zipped(), 415, "unknown_format", "PK"),
    ],
)
def test_every_bad_file_has_its_own_answer(
    door: str, file: bytes, status: int, error: str, words: str
) -> None:
    """A traceback, a score of rubbish, or a server that has to be started again."""
    answer = post(door, file)
    assert (answer.status, answer.error) == (status, error), answer
    assert words in answer.body["message"]
    assert ask(f"{door}/health", token=None).status == 200


@pytest.mark.parametrize(
    ("fields", "status", "error", "words"),
    [
        ({"prompt": ""}, 422, "empty_prompt", "empty"),
        ({"prompt": " \n"}, 422, "empty_prompt", "empty"),
        ({"prompt": "x" * 4001}, 422, "bad_prompt", "4001 characters"),
        ({"prompt": "a\x00b"}, 422, "bad_prompt", "control characters"),
        ({"prompt": "a cat"}, 422, "not_scored", "a cat"),
        ({"rewards": "tiny_clap"}, 404, "unknown_reward", "'tiny_clap' is not served; there is tiny_clip"),
        ({"points": 33}, 422, "malformed", "0 to 32"),
        ({"points": "many"}, 422, "malformed", "points"),
    ],
)
def test_every_bad_field_has_its_own_answer(
    door: str, fields: dict[str, str], status: int, error: str, words: str
) -> None:
    """A mistake of the caller that looks like one of the server."""
    answer = post(door, npy(GOOD), **fields)  # type: ignore[arg-type]
    assert (answer.status, answer.error) == (status, error), answer
    assert words in answer.body["message"]


def test_a_video_that_is_too_short_for_a_scorer_is_refused_by_it(door: str) -> None:
    """One frame has no motion: a number, or a fault of the program, would both be wrong."""
    answer = post(door, npy(GOOD[:1]), rewards="motion_quality")
    assert (answer.status, answer.error) == (422, "not_scored") and "5 frames" in answer.body["message"]


@pytest.mark.parametrize(
    ("token", "status", "error"),
    [(None, 401, "unauthorized"), ("another", 403, "forbidden"), (TOKEN + "x", 403, "forbidden")],
)
def test_nothing_is_scored_or_listed_without_the_token(
    door: str, token: str | None, status: int, error: str
) -> None:
    """GPUs that anybody on the network can use."""
    for answer in (post(door, npy(GOOD), token=token), ask(f"{door}/v1/rewards", token=token)):
        assert (answer.status, answer.error) == (status, error)
    assert answer.headers.get("www-authenticate") == ("Bearer" if token is None else None)


def raw(door: str, head: str, body: bytes = b"", *, timeout_s: float = 10) -> str:
    """The first bytes that come back for a request written by hand."""
    host, _, port = door.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return connection.recv(4096).decode()


def test_a_request_that_is_too_large_is_refused_before_it_is_sent() -> None:
    """Gigabytes on the disk of the server, by whoever likes."""
    with local_door(max_bytes=1000) as door:
        head = f"POST /v1/scores HTTP/1.1\nHost: x\nAuthorization: Bearer {TOKEN}\n"
        assert raw(door, head + "Content-Length: 10000000000").startswith("HTTP/1.1 413")
        part = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        chunk = b"10000\r\n" + part.ljust(0x10000) + b"\r\n"
        unannounced = head + 'Content-Type: multipart/form-data; boundary="x"\nTransfer-Encoding: chunked'
        assert raw(door, unannounced, chunk * 2).startswith("HTTP/1.1 413")
        without_token = "POST /v1/scores HTTP/1.1\nHost: x\nContent-Length: 10000000000"
        assert raw(door, without_token).startswith("HTTP/1.1 401")


class Slow:
    """A pool that answers when it is told to."""

    views = (FrameSpec(),)

    def __init__(self, go: threading.Event) -> None:
        self._go, self.num_asked = go, 0

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        self.num_asked += 1
        await asyncio.to_thread(self._go.wait, 20)
        return [Scores({"image_quality": 1.0})]


def test_a_full_door_says_when_to_come_back_and_goes_on_with_what_it_has() -> None:
    """Uploads that wait in memory until the server dies, and callers who hammer at it."""
    go = threading.Event()
    pool = Slow(go)
    with local_door(lambda _: pool, keys=["image_quality"], max_requests=2) as door:  # type: ignore[arg-type, return-value]
        answers: list[Answer] = []
        callers = [threading.Thread(target=lambda: answers.append(post(door, npy(GOOD)))) for _ in range(2)]
        for caller in callers:
            caller.start()
        deadline = time.monotonic() + 10
        while pool.num_asked < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        turned_away = post(door, npy(GOOD))
        assert (turned_away.status, turned_away.error) == (503, "busy")
        assert int(turned_away.headers["retry-after"]) >= 1
        assert ask(f"{door}/health", token=None).status == 200
        go.set()
        for caller in callers:
            caller.join(20)
        assert [answer.status for answer in answers] == [200, 200]
        assert post(door, npy(GOOD)).status == 200


@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (InfraFailure("reward server of 'x' did not answer in 4 attempts"), 503, "unavailable"),
        (DataFailure("the prompt 'a <|Reward|>' contains <|Reward|>, which is a mark"), 422, "not_scored"),
        (ValueError("a fault of the program"), 500, "fault"),
    ],
)
def test_what_goes_wrong_behind_the_door_is_told_as_what_it_is(
    failure: Exception, status: int, error: str | None
) -> None:
    """A dead reward server that looks like a bad video, or a fault that looks like the caller's."""

    class Failing:
        views = (FrameSpec(),)

        async def start(self) -> None: ...

        async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
            raise failure

    with local_door(lambda _: Failing(), keys=["image_quality"]) as door:  # type: ignore[arg-type, return-value]
        for _ in range(2):
            answer = post(door, npy(GOOD))
            assert (answer.status, answer.error) == (status, error)
            assert (answer.headers.get("retry-after") is None) == (status != 503)


HEAD = npy(GOOD)[:128]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 70000)
@example(b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118)
@example(HEAD.replace(b"(9, 3, 16, 16)", b"(-9,3, 16, 16)") + GOOD.tobytes())
@example(HEAD.replace(b"'|u1'", b"'|O' "))
@given(
    st.one_of(
        st.binary(max_size=200).map(lambda tail: b"\x93NUMPY" + tail),
        st.binary(max_size=118).map(lambda header: HEAD[:10] + header.ljust(118) + GOOD.tobytes()),
        st.tuples(st.integers(10, 127), st.integers(0, 255)).map(
            lambda change: HEAD[: change[0]] + bytes([change[1]]) + HEAD[change[0] + 1 :] + GOOD.tobytes()
        ),
        st.binary(max_size=300),
    )
)
def test_no_npy_file_brings_the_door_down(door: str, file: bytes) -> None:
    """Parsers of headers written by strangers fail in ways that nobody thought of."""
    answer = post(door, file, rewards="image_quality")
    assert answer.status in (200, 413, 415, 422), answer
    assert answer.status == 200 or set(answer.body) == {"error", "message"}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(8, 1500), st.integers(0, 255)), min_size=1, max_size=20))
def test_no_mp4_file_brings_the_door_down(door: str, changes: list[tuple[int, int]]) -> None:
    """FFmpeg crashes now and then; that must end its own process only."""
    file = bytearray(clip_mp4())
    for place, value in changes:
        file[place % len(file)] = value
    answer = post(door, bytes(file), rewards="image_quality")
    assert answer.status in (200, 413, 415, 422), answer
    assert ask(f"{door}/health", token=None).status == 200


def test_a_form_without_a_video_is_refused(door: str) -> None:
    """A missing field must be named."""
    body, kind = form(b"", {"prompt": RED})
    body = body.replace(b'name="video"; filename="v"', b'name="vidoe"; filename="v"')
    answer = ask(f"{door}/v1/scores", body, headers={"Content-Type": kind})
    assert (answer.status, answer.error) == (422, "malformed") and "video" in answer.body["message"]
    answer = ask(f"{door}/v1/scores", b"garbage", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status in (400, 422) and answer.error == "malformed"
