"""One worker: files that grow, contact sheets, beginnings that are given, and batches."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.decoder import to_uint8
from actors.local_video_pool import LocalVideoPool
from actors.scene_sheet import CUT, SOFT, START, SceneSheet, sheet_of_file
from actors.scenes import parse_scenes, plan_scenes
from actors.video_models import VideoModels, merge_lora
from actors.video_worker import VideoWorker
from astrolabe_ray.config.schema import LoraConfig, ModelConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora import adapter_tensors, add_adapters
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.report.video import decode_mp4, encode_mp4
from astrolabe_ray.types import FrameSpec
from astrolabe_ray.video_tasks import FinishedVideos, VideoModelSpec, VideoPiece, VideoTask
from tests.small_run import HOSTILE, moving_square
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> VideoModelSpec:
    root = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return VideoModelSpec(ModelConfig(path=str(root)))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def worker(spec: VideoModelSpec, **changes: object) -> VideoWorker:
    made = VideoWorker(replace(spec, **changes), "worker")  # type: ignore[arg-type]
    made.setup()
    return made


def task(prompt: str, number: int = 0) -> VideoTask:
    plan = plan_scenes(parse_scenes(prompt), fps=8, chunk_frames=3, default_chunks=2)
    return VideoTask(number, 0, prompt, 100 + number, plan, f"print-{number}")


def all_of(worker: VideoWorker, tasks: Sequence[VideoTask]) -> tuple[list[VideoPiece], FinishedVideos, list]:
    *pieces, finished, views = [], None, []
    pieces: list[VideoPiece] = []
    for value in worker.make(tasks):
        if isinstance(value, VideoPiece):
            pieces.append(value)
        elif isinstance(value, FinishedVideos):
            finished = value
        else:
            views.append(value)
    assert finished is not None
    return pieces, finished, views


def test_a_streamed_file_plays_before_the_video_is_finished(spec: VideoModelSpec) -> None:
    """An mp4 with its index at the end is a file of garbage until then."""
    streaming = worker(spec, is_stream=True)
    content, seen = b"", []
    for value in streaming.make([task("a[3s] | red circle[3s#] | blue square[3s]")]):
        content += value.parts[0] if isinstance(value, (VideoPiece, FinishedVideos)) else b""
        with av.open(io.BytesIO(content)) as file:
            frames = list(file.decode(video=0))
        seen.append(len(frames))
        assert frames[-1].time == pytest.approx((len(frames) - 1) / 8)
    made = [9, 21, 30, 42, 54, 66, 66]
    assert seen == [number - 1 for number in made[:-1]] + [66], "the newest frame may wait for its successor"


def test_a_streamed_file_holds_the_same_video(spec: VideoModelSpec) -> None:
    """Chunks that are encoded anew each time would flicker where they meet."""
    tasks = [task("a", 0), task("red circle", 1)]
    pieces, finished, _ = all_of(worker(spec, is_stream=True), tasks)
    whole_pieces, whole, views = all_of(worker(spec, views=(FrameSpec(),)), tasks)
    assert all(part == b"" for piece in whole_pieces for part in piece.parts)
    for number, view in enumerate(views):
        grown = b"".join(piece.parts[number] for piece in pieces) + finished.parts[number]
        small = [decode_mp4(content)[0][:, :, 3::6, 3::6] for content in (grown, whole.parts[number])]
        for video in small:
            assert video.shape == view.shape == (21, 3, 32, 32)
            # 4:2:0 blurs colour at edges, and this video is noise
            assert np.abs(video.astype(int) - view).mean() < 15
            assert np.corrcoef(video.ravel(), view.ravel())[0, 1] > 0.8


def test_a_file_says_what_it_shows(spec: VideoModelSpec) -> None:
    """A video that was copied out of its folder and can't be traced to prompt and seed."""
    prompt = HOSTILE.replace("[", "").replace("|", "")
    _, finished, _ = all_of(worker(spec), [task(prompt)])
    facts = json.loads(decode_mp4(finished.parts[0])[1])
    assert (facts["prompt"], facts["seed"], facts["settings"]) == (prompt, 100, "print-0")
    assert facts["model"]["path"] == spec.model.path


def test_views_come_last_and_in_the_order_of_the_videos(spec: VideoModelSpec) -> None:
    """A scorer would judge one video by the prompt of another."""
    both = (FrameSpec(), FrameSpec(num_frames=2, height=16, width=16))
    tasks = [task("a", 0), task("red circle", 1)]
    _, finished, views = all_of(worker(spec, views=both, with_files=False), tasks)
    assert finished.parts == (b"", b"")
    assert [view.shape for view in views] == [(21, 3, 32, 32), (2, 3, 16, 16)] * 2
    _, _, alone = all_of(worker(spec, views=both[:1], with_files=False, with_sheets=False), tasks[1:])
    assert np.abs(alone[0].astype(int) - views[2]).max() <= 1


def test_a_video_file_is_gone_on_from(spec: VideoModelSpec, tmp_path: Path) -> None:
    """The wrong end of the file, or the wrong size, and the continuation has nothing to do with it."""
    file = tmp_path / "given.mp4"
    long = moving_square(frames=40, side=192)
    file.write_bytes(encode_mp4(long, fps=8, comment=""))
    pieces, finished, (view,) = all_of(
        worker(spec, initial=str(file), views=(FrameSpec(),)), [task("a[3s] | red circle[3s]")]
    )
    given = 4 * (9 - 1) + 1  # the last 33 of 40 frames, three chunks
    assert finished.num_frames == len(view) == given + 4 * 12
    assert [piece.num_chunks for piece in pieces] == [0, 0, 0, 1, 2, 3, 4]
    small = torch.from_numpy(decode_mp4(file.read_bytes())[0][-given:, :, 3::6, 3::6].copy())
    vae = VideoModels.load(spec).vae
    expected = vae.decode(vae.encode(small.float()[None] / 127.5 - 1))[0]
    shown = torch.from_numpy(view[:given]).float() / 127.5 - 1
    assert (shown - expected).abs().mean() < 0.05
    sheet = cv2.imdecode(np.frombuffer(finished.sheets[0], np.uint8), cv2.IMREAD_COLOR)
    assert sheet is not None and sheet.shape[0] == 3 * (22 + 96 + 16), "the given part has a row of its own"


def test_latents_are_gone_on_from(spec: VideoModelSpec, tmp_path: Path) -> None:
    """A latent frame from the middle of a video, decoded as its first one, is garbage."""
    latents = torch.randn(7, 4, 4, 4)
    save_file({"latents": latents}, tmp_path / "given.safetensors")
    made = worker(spec, initial=str(tmp_path / "given.safetensors"), views=(FrameSpec(),))
    _, finished, (view,) = all_of(made, [task("a[3s]")])
    assert finished.num_frames == 4 * (6 - 1) + 1 + 4 * 6
    whole = to_uint8(VideoModels.load(spec).vae.decode(latents[None]))[0]  # of all seven: 25 frames
    assert np.abs(view[:21].astype(int) - whole[:21]).max() <= 1


def sound() -> bytes:
    """An mp4 file of a moment's silence."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux([*stream.encode(frame), *stream.encode()])
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text.mp4", b"no video", "can't read the video"),
        ("sound.mp4", sound(), "can't read the video .*: it holds no pictures"),
        ("short.mp4", encode_mp4(moving_square(frames=8), fps=8, comment=""), "has 8 frames, .* needs 9"),
        ("text.safetensors", b"no latents", "can't read 'latents'"),
    ],
)
def test_a_beginning_that_is_none_is_named(
    spec: VideoModelSpec, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    """A traceback of a library, or a video that starts from nothing."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        worker(spec, initial=str(tmp_path / name))


TOO_MUCH = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            "GPU memory with 2 videos at a time: CUDA out of memory",
        ),
        (RuntimeError(TOO_MUCH), f"CPU memory with 2 videos at a time: {TOO_MUCH}"),
        (
            RuntimeError("not enough memory: you tried to allocate 9\nframe #0"),
            "CPU memory .*: not enough .* 9",
        ),
        (MemoryError(), "CPU memory with 2 videos at a time: it is full"),
    ],
)
def test_memory_that_runs_out_is_one_line_and_says_what_needs_less(
    spec: VideoModelSpec, error: Exception, words: str
) -> None:
    """A traceback of torch's allocator, on a CPU, where a GPU's was a line."""
    full = worker(spec)

    def fail(*_: object) -> None:
        raise error

    full._models.transformer.patch_embedding.register_forward_hook(fail)
    with pytest.raises(ConfigError, match=rf"^worker ran out of {words}\. Lower --batch-size") as caught:
        all_of(full, [task("a", 0), task("a", 1)])
    assert len(str(caught.value).splitlines()) == 1


def test_a_beginning_that_is_too_large_for_the_memory_is_named(spec: VideoModelSpec, tmp_path: Path) -> None:
    """It is resized and encoded before the first video, in a place of its own."""
    (tmp_path / "given.mp4").write_bytes(encode_mp4(moving_square(frames=9), fps=8, comment=""))
    vast = spec.model.model_copy(update={"height": 2**23, "width": 2**23})
    with pytest.raises(ConfigError, match=r"^worker ran out of CPU memory reading .*given\.mp4: "):
        worker(spec, model=vast, initial=str(tmp_path / "given.mp4"))


def test_other_faults_are_not_taken_for_a_lack_of_memory(spec: VideoModelSpec) -> None:
    """A fault of the program would be blamed on the size of a batch."""
    broken = worker(spec)

    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken._models.transformer.patch_embedding.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        all_of(broken, [task("a")])


def test_latents_of_another_model_are_named(spec: VideoModelSpec, tmp_path: Path) -> None:
    """Sixteen channels where four are needed fail somewhere inside a convolution."""
    save_file({"latents": torch.zeros(3, 16, 4, 4)}, tmp_path / "given.safetensors")
    with pytest.raises(ConfigError, match=r"shape \(3, 16, 4, 4\).*C, H, W = \(4, 4, 4\)"):
        worker(spec, initial=str(tmp_path / "given.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_latents_that_are_no_numbers_are_blamed_on_their_file(
    spec: VideoModelSpec, tmp_path: Path, value: float
) -> None:
    """Every prompt would be left out as one that can't be made."""
    latents = torch.zeros(7, 4, 4, 4)
    latents[6] = value  # of no whole chunk, and left out
    save_file({"latents": latents}, tmp_path / "given.safetensors")
    worker(spec, initial=str(tmp_path / "given.safetensors"))
    latents[4, 2, 1, 3] = value
    save_file({"latents": latents}, tmp_path / "given.safetensors")
    words = r"given\.safetensors are not finite in 1 of 6 latent frames, the first is 4; give a file without"
    with pytest.raises(ConfigError, match=words):
        worker(spec, initial=str(tmp_path / "given.safetensors"))


def test_a_lora_changes_the_model_as_peft_does(spec: VideoModelSpec, tmp_path: Path) -> None:
    """A LoRA with the wrong scale, or none at all, is not seen in a video."""
    model = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    wrapped = add_adapters(model, LoraConfig(rank=4, alpha=8), ("default",))
    for number, tensor in enumerate(adapter_tensors(wrapped, "default").values()):
        torch.nn.init.normal_(tensor, std=0.2, generator=torch.Generator().manual_seed(number))
    wrapped.save_pretrained(str(tmp_path / "lora"))
    merged = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    merge_lora(merged, str(tmp_path))  # found in its child lora/
    expected = wrapped.base_model.merge_and_unload().state_dict()  # type: ignore[union-attr, operator]
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)


def test_a_lora_of_another_model_is_named(spec: VideoModelSpec, tmp_path: Path) -> None:
    """Tensors that find no place would be left out without a word."""
    save_file(
        {"base_model.model.blocks.9.ffn.0.lora_A.weight": torch.zeros(1)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 1}')
    with pytest.raises(ConfigError, match="does not fit the model"):
        worker(spec, lora=str(tmp_path))


def test_work_in_this_process_can_be_interrupted_between_chunks(spec: VideoModelSpec) -> None:
    """Who presses Ctrl-C would wait for the end of a video of ten minutes."""
    seen: list[int] = []

    class Interrupting:
        def begin(self, tasks: Sequence[VideoTask]) -> None: ...

        def take(self, tasks: Sequence[VideoTask], piece: VideoPiece) -> None:
            seen.append(piece.num_chunks)
            if piece.num_chunks == 2:
                making.cancel()

    async def make() -> None:
        nonlocal making
        pool = LocalVideoPool(spec)
        await pool.start()
        making = asyncio.ensure_future(pool.make([task("a[15s]")], Interrupting()))
        with pytest.raises(asyncio.CancelledError):
            await making

    making: asyncio.Future[FinishedVideos]
    asyncio.run(make())
    assert seen == [1, 2]


@pytest.mark.parametrize("initial", [False, True])
def test_a_sheet_is_drawn_again_from_the_file(spec: VideoModelSpec, tmp_path: Path, initial: bool) -> None:
    """Rows that start at other frames than those of the first sheet."""
    (tmp_path / "given.mp4").write_bytes(encode_mp4(moving_square(frames=21), fps=8, comment=""))
    options = {"initial": str(tmp_path / "given.mp4")} if initial else {}
    wanted = task("a[3s] | red circle[3s#]")
    _, finished, _ = all_of(worker(spec, **options), [wanted])
    (tmp_path / "made.mp4").write_bytes(finished.parts[0])
    again = sheet_of_file(
        tmp_path / "made.mp4", wanted.plan, chunk_frames=3, fps=8, num_frames=finished.num_frames
    )
    first, second = (
        cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) for png in (finished.sheets[0], again)
    )
    assert first is not None and second is not None and first.shape == second.shape
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.9  # 4:2:0 blurs colour, and this is noise
    (tmp_path / "torn.mp4").write_bytes(finished.parts[0][:200])
    with pytest.raises(ConfigError, match="delete it, and it is made again"):
        sheet_of_file(tmp_path / "torn.mp4", wanted.plan, chunk_frames=3, fps=8, num_frames=39)
    with pytest.raises(ConfigError, match=f"has {finished.num_frames} frames and not 99; delete it"):
        sheet_of_file(tmp_path / "made.mp4", wanted.plan, chunk_frames=3, fps=8, num_frames=99)


def test_a_contact_sheet_shows_each_scene_with_its_own_frames() -> None:
    """A frame under the wrong title, or a transition that is not marked."""
    scenes = parse_scenes("one[3s] | two[3s#] | three[1.5s]")
    plan = plan_scenes(scenes, fps=8, chunk_frames=3, default_chunks=1)
    starts, num_frames = [0, 21, 42], 54
    assert plan.first_frame(plan.num_chunks, 3) == num_frames
    video = np.zeros((num_frames, 3, 32, 32), np.uint8)
    video += np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 4
    sheet = SceneSheet(plan, chunk_frames=3, fps=8)
    for part in np.split(video, [9, 21, 30]):
        sheet.add(part)
    picture = sheet.picture()
    height = 22 + 96 + 16
    assert picture.shape == (3 * height, 14 + 10 * (96 + 6), 3)
    for row, (first, last, mark) in enumerate(zip(starts, [20, 41, 53], (START, CUT, SOFT), strict=True)):
        middle = row * height + 22 + 48
        levels = [int(picture[middle, 14 + column * 102 + 48, 0]) for column in range(10)]
        assert levels[0] == first * 4 and levels[-1] == last * 4
        assert levels == sorted(levels)
        assert picture[middle, 3].tolist() == list(mark)
    decoded = cv2.imdecode(np.frombuffer(sheet.png(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None and (decoded[..., ::-1] == picture).all()
