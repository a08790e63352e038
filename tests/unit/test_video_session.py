"""Videos that grow: what a prompt that changes does, and that nothing else depends on how they are made."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.decoder import to_uint8
from actors.interactive import Turn, VideoSession
from actors.video_models import VideoModels, Visits
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.errors import DataFailure
from astrolabe_ray.models.wan.rope import frame_rotations
from astrolabe_ray.video_tasks import VideoModelSpec
from tests.tiny_model import write_tiny_model

BEFORE = "a small red circle moves left on a white background"
AFTER = "a large red circle moves right on a white background"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> VideoModels:
    """Random weights: every input changes the output."""
    root = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return VideoModels.load(VideoModelSpec(ModelConfig(path=str(root))))


@pytest.fixture(scope="module")
def sprites() -> VideoModels:
    """The embedded model, which shows what it is told."""
    return VideoModels.load(VideoModelSpec(ModelConfig(rope="relative")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frames_of(session: VideoSession) -> np.ndarray:
    return np.concatenate(list(session), axis=1)


def change(video: np.ndarray, frame: int) -> float:
    """Mean absolute difference to the frame before, in 8-bit levels."""
    return float(np.abs(video[:, frame].astype(float) - video[:, frame - 1]).mean())


def test_a_soft_transition_goes_on_where_a_cut_starts_anew(sprites: VideoModels) -> None:
    """Both kinds alike: either every scene jumps, or a cut drags the old picture along."""
    videos = {
        is_cut: frames_of(
            VideoSession(
                sprites, [BEFORE] * 4, (1, 2, 3, 4), num_chunks=6, turns={3: Turn((AFTER,) * 4, is_cut)}
            )
        )
        for is_cut in (False, True)
    }
    soft, cut = videos[False], videos[True]
    assert (soft[:, :33] == cut[:, :33]).all(), "nothing may be known before it is said"
    assert soft.shape[1] == 4 * (18 - 1) + 1
    assert cut.shape[1] == 2 * (4 * (9 - 1) + 1), "a cut starts the decoder anew: one frame, then four each"
    usual = max(change(soft, frame) for frame in (9, 21))  # where chunks meet
    assert change(soft, 33) < 2 * usual
    assert change(cut, 33) > 3 * usual
    red = [(video[:, 60:, 0] > 150) & (video[:, 60:, 1] < 110) for video in (soft, cut)]
    assert all(share.mean() > 0.08 for share in red), "a large circle follows the small one"


def test_after_a_cut_nothing_is_seen_of_what_was_before(models: VideoModels) -> None:
    """Latents, keys or decoder features that survive would show as a ghost of the scene before."""
    turns = {2: Turn(("blue square",), is_cut=True)}
    one, other = (
        frames_of(VideoSession(models, [prompt], [5], num_chunks=4, turns=turns))
        for prompt in ("red circle", "a")
    )
    assert (one[:, :21] != other[:, :21]).any()
    assert (one[:, 21:] == other[:, 21:]).all()


def test_each_video_of_a_batch_hears_its_own_prompts(models: VideoModels) -> None:
    """Prompts that are mixed up between videos, or a video that depends on the others."""
    plans = (("a", "red circle"), ("blue square", "a"))
    alone = [
        frames_of(VideoSession(models, [p[0]], [seed], num_chunks=4, turns={2: Turn((p[1],))}))[0]
        for seed, p in enumerate(plans)
    ]
    turns = {2: Turn(tuple(p[1] for p in plans))}
    together = frames_of(VideoSession(models, [p[0] for p in plans], [0, 1], num_chunks=4, turns=turns))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # sums in another order
    assert np.abs(together[0].astype(int) - together[1]).max() > 20


def test_what_is_said_between_chunks_is_heard_at_the_next_one(models: VideoModels) -> None:
    """The answer to a person would come late, or change what was seen already."""
    known = frames_of(VideoSession(models, ["a"], [3], num_chunks=5, turns={2: Turn(("red circle",), True)}))
    session, seen = VideoSession(models, ["a"], [3], num_chunks=5), []
    for number, frames in enumerate(session):
        if number == 1:
            session.say("red circle", cut=True)
        seen.append(frames)
    assert [frames.shape[1] for frames in seen] == [9, 12, 9, 12, 12]
    assert (np.concatenate(seen, axis=1) == known).all()


def test_looking_ahead_changes_no_pixel_and_delays_what_is_said_by_a_chunk(models: VideoModels) -> None:
    """Two threads that share a cache or a generator would mix up chunks."""
    turns = {1: Turn(("red circle", "a")), 3: Turn(("a", "blue square"), is_cut=True)}
    videos = [
        frames_of(VideoSession(models, ["a", "a"], [3, 4], num_chunks=6, turns=turns, look_ahead=look_ahead))
        for look_ahead in (False, True)
    ]
    assert (videos[0] == videos[1]).all()
    session, lengths = VideoSession(models, ["a"], [3], num_chunks=4, look_ahead=True), []
    for number, frames in enumerate(session):
        if number == 0:
            session.say("red circle", cut=True)
        lengths.append(frames.shape[1])
    assert lengths == [9, 12, 9, 12], "chunk 1 was begun; the cut comes with chunk 2"


def test_a_session_that_is_left_early_leaves_no_thread(models: VideoModels) -> None:
    """A thread that goes on would use the cache of the next video."""
    session = iter(VideoSession(models, ["a"], [3], num_chunks=50, look_ahead=True))
    next(session)
    session.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("denoise")]


def test_a_video_goes_on_from_what_is_given(sprites: VideoModels) -> None:
    """Given latents that are only shown, or only seen, make a video that jumps."""
    session = VideoSession(sprites, [BEFORE], [1], num_chunks=3)
    made = [session._denoised(session._begin()).latents_BTCHW for _ in range(2)]
    given = torch.cat(made, dim=1)[0]
    video = frames_of(VideoSession(sprites, [BEFORE], [9], num_chunks=2, given_TCHW=given))
    assert video.shape[1] == 4 * (12 - 1) + 1
    assert (video[:, :21] == to_uint8(sprites.vae.decode(given[None]))).all()
    assert change(video, 21) < 2 * change(video, 9)
    anew = frames_of(VideoSession(sprites, [BEFORE], [9], num_chunks=2))
    assert np.abs(anew[:, :9].astype(int) - video[:, 21:30]).mean() > 2


def test_a_long_video_holds_no_more_than_a_short_one(models: VideoModels) -> None:
    """Ten minutes of video must fit where ten seconds do."""

    def tensors() -> tuple[int, int]:
        """How many there are, and their bytes, but for a table of rotations that is bounded."""
        frame_rotations.cache_clear()
        gc.collect()
        found = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        return len(found), sum(tensor.numel() * tensor.element_size() for tensor in found)

    num_chunks, held = 75, {}
    session = VideoSession(models, ["a"], [3], num_chunks=num_chunks)  # 225 latent frames
    for number, _ in enumerate(session):
        if number % 5 == 0:
            session.say(("red circle", "blue square")[number % 2])
        if number in (10, 70):
            held[number] = tensors()
    count, size = held[10]
    assert held[70][0] <= count and held[70][1] <= size


class Moves:
    """A model that notes where it is taken."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def to(self, device: torch.device) -> None:
        self._log.append(f"{self._name} to {device.type}")


def test_with_low_memory_one_model_visits_the_device_at_a_time() -> None:
    """Two guests at once need the memory that the mode is to save; one that stays, too."""
    log: list[str] = []
    visits = Visits(torch.device("meta"), low_memory=True)
    for name in ("text encoder", "vae", "vae"):
        with visits.of(Moves(name, log)):
            log.append(f"{name} at work")
    guests = ("text encoder", "vae", "vae")
    assert log == [line for g in guests for line in (f"{g} to meta", f"{g} at work", f"{g} to cpu")]
    with pytest.raises(ValueError, match="broken"), visits.of(Moves("vae", log)):
        raise ValueError("broken")
    assert log[-1] == "vae to cpu"
    assert visits.home.type == "cpu"
    with Visits(torch.device("meta"), low_memory=False).of(Moves("vae", log)):
        assert log[-1] == "vae to cpu", "without low memory nothing is moved"


def test_low_memory_changes_no_pixel(
    models: VideoModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is used after it left, or a stream that forgets its features between two visits."""
    spec = VideoModelSpec(models.spec.model, low_memory=True)
    frugal = VideoModels.load(spec)
    visitors: list[str] = []
    for name in ("text_encoder", "vae"):
        monkeypatch.setattr(getattr(frugal, name), "to", lambda device, name=name: visitors.append(name))
    turns = {1: Turn(("red circle",))}
    expected = frames_of(VideoSession(models, ["a"], [3], num_chunks=3, turns=turns))
    got = frames_of(VideoSession(frugal, ["a"], [3], num_chunks=3, turns=turns))
    assert (got == expected).all()
    order = ["text_encoder", "vae", "text_encoder", "vae", "vae"]  # chunk 1 starts with a new prompt
    assert visitors == [name for name in order for _ in ("comes", "goes")]


def test_latents_that_are_no_numbers_end_the_video(models: VideoModels) -> None:
    """A black video would be written and counted as done."""
    session = VideoSession(models, ["a"], [3], num_chunks=1, given_TCHW=torch.full((3, 4, 4, 4), torch.nan))
    with pytest.raises(DataFailure, match="not finite"):
        next(iter(session))
