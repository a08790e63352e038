"""Videos whose prompt changes while they grow, against a list of frames that is recomputed each time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.generation import Generation
from actors.sampler import Sampler
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import KVCache
from tests.plain_video import PlainVideo
from tests.random_wan import ARCHITECTURE, prompts, random_model, video

TIMESTEPS = (1000.0, 625.0)
CONTEXT_TIMESTEP = 20.0
SHAPE = (24, 4, 2, 4)
TEXTS = [torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(number)) for number in range(3)]

Action = tuple[str, int]


@st.composite
def stories(draw: st.DrawFn) -> tuple[ContextRule, list[Action]]:
    """A rule, and what is done to the video: chunks with changes of the prompt in between."""
    chunk = draw(st.integers(1, 3))
    sink = draw(st.integers(0, 2 * chunk))
    window = draw(st.none() | st.integers(sink + chunk, sink + chunk + 3))
    rule = ContextRule(chunk, window, sink, draw(st.sampled_from(["absolute", "relative"])))
    changes = st.sampled_from(["none", "switch", "renew", "cut"])
    story: list[Action] = []
    for number in range(draw(st.integers(2, 4))):
        story += [("extend", chunk)] * draw(st.integers(1, 2))
        story.append((draw(changes), (number + 1) % 3))
    return rule, [*story, ("extend", chunk)]


def begin(rule: ContextRule) -> tuple[Generation, PlainVideo]:
    model = random_model()
    sampler = Sampler(model, rule, TIMESTEPS, CONTEXT_TIMESTEP)
    cached = sampler.begin(model.encode_text(TEXTS[0]), (7,), SHAPE[0], *SHAPE[2:])
    plain = PlainVideo(model, rule, TIMESTEPS, CONTEXT_TIMESTEP, TEXTS[0], (7,), SHAPE)
    return cached, plain


@given(stories())
@settings(max_examples=25, deadline=None)
def test_a_prompt_that_changes_is_a_cache_written_anew_from_the_frames_in_view(
    case: tuple[ContextRule, list[Action]],
) -> None:
    """Frames of the old prompt could stay in view, the sink be lost or moved, a clean pass be forgotten."""
    rule, story = case
    cached, plain = begin(rule)
    model = random_model()
    for action, value in story:
        if action == "extend":
            actual, expected = cached.extend(value), plain.extend(value)
            torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)
        elif action == "cut":
            cached.cut(model.encode_text(TEXTS[value]))
            plain.cut(TEXTS[value])
        elif action != "none":
            renew = action == "renew"
            cached.switch(model.encode_text(TEXTS[value]), renew_sink=renew)
            plain.switch(TEXTS[value], renew_sink=renew)


def test_a_switch_changes_what_follows_and_a_cut_forgets_what_was() -> None:
    """Both kinds of transition would be the same, or none."""
    rule, model = ContextRule(3, 7, 1), random_model()
    endings = {}
    for kind in ("go on", "switch", "cut"):
        cached, _ = begin(rule)
        for _ in range(3):
            cached.extend()
        if kind != "go on":
            getattr(cached, kind)(model.encode_text(TEXTS[1]))
        endings[kind] = cached.extend()
    assert (endings["go on"] - endings["switch"]).abs().max() > 0.1
    assert (endings["switch"] - endings["cut"]).abs().max() > 0.1


@pytest.mark.parametrize("rule", [ContextRule(2, 5, 3), ContextRule(3, None, 0, "relative")], ids=str)
def test_a_given_beginning_is_seen_as_if_it_had_been_made(rule: ContextRule) -> None:
    """A continuation must see the given frames clean, at their positions, and noise of later frames."""
    cached, plain = begin(rule)
    given_frames = video(3, 2 * rule.chunk_frames, batch=1)[..., :2, :4]
    cached.follow(given_frames)
    plain.follow(given_frames)
    for _ in range(2):
        actual, expected = cached.extend(), plain.extend(rule.chunk_frames)
        torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_beginning_that_is_no_whole_number_of_chunks_is_refused() -> None:
    """The model never saw chunks that start in the middle of one."""
    cached, _ = begin(ContextRule(3, 7, 1))
    with pytest.raises(
        ConfigError, match="4 given latent frames are not a multiple of chunk_frames 3; give 3"
    ):
        cached.follow(video(3, 4, batch=1)[..., :2, :4])


def test_a_long_video_keeps_no_more_latents_than_its_window() -> None:
    """Minutes of video would fill the memory with frames that nothing looks at again."""
    rule, model = ContextRule(3, 7, 1), random_model()
    sampler = Sampler(model, rule, (1000.0,), 0.0)
    generation = sampler.begin(model.encode_text(TEXTS[0]), (7,), 150, 2, 4)
    for _ in range(50):
        generation.extend()
        assert len(generation._frames) <= 7


@pytest.mark.parametrize("rule", [ContextRule(2, 7, 1), ContextRule(2, 5, 1, "relative")], ids=str)
def test_continuations_of_one_prefix_equal_videos_that_made_it_themselves(rule: ContextRule) -> None:
    """A fork that shares memory would let one candidate write into another's past."""
    model, clean = random_model(), video(5, 6, batch=1)
    text = model.encode_text(prompts(1))
    continuations = video(6, 4, batch=3)
    at_clean, at_noise = model.at_timestep(0.0), model.at_timestep(800.0)

    def cache(batch: int) -> KVCache:
        return KVCache(
            ARCHITECTURE,
            rule,
            batch=batch,
            num_frames=12,
            grid=(2, 3),
            dtype=torch.float32,
            device=torch.device("cpu"),
        )

    def prefixed(batch: int) -> KVCache:
        made = cache(batch)
        for chunk in clean.expand(batch, -1, -1, -1, -1).split(2, dim=1):
            made.begin(2)
            model.chunk_forward(chunk, at_clean, text.expand(batch), made)
        return made

    def continued(made: KVCache, frames: torch.Tensor) -> torch.Tensor:
        flows = []
        for chunk in frames.split(2, dim=1):
            made.begin(2)
            flows.append(model.chunk_forward(chunk, at_noise, text.expand(len(frames)), made))
        return torch.cat(flows, dim=1)

    prefix, forked = prefixed(1), cache(3)
    forked.fork_from(prefix)
    together = continued(forked, continuations)
    forked.fork_from(prefix)  # the first continuation left the prefix as it was
    torch.testing.assert_close(continued(forked, continuations), together, atol=0, rtol=0)
    alone = torch.cat([continued(prefixed(1), one[None]) for one in continuations])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "rule", [ContextRule(2, 5, 3), ContextRule(2, 5, 1, "relative"), ContextRule(3, None, 0)], ids=str
)
def test_forked_videos_go_on_from_what_was_made_and_leave_it_as_it_is(rule: ContextRule) -> None:
    """A fork that misses the newest chunk, shares memory, or cannot hear a new prompt."""
    model, chunk = random_model(), rule.chunk_frames
    (cached, _), (untouched, _) = begin(rule), begin(rule)
    made = torch.cat([cached.extend() for _ in range(3)], dim=1)
    for _ in range(3):
        untouched.extend()
    forked = cached.fork((21, 22))
    first = forked.extend()
    forked.switch(model.encode_text(TEXTS[1]).expand(2))
    second = forked.extend()
    for number, seed in enumerate((21, 22)):
        plain = PlainVideo(model, rule, TIMESTEPS, CONTEXT_TIMESTEP, TEXTS[0], (seed,), SHAPE)
        plain.follow(made)
        plain.num_noised = 0  # a fork's noise starts where it does
        torch.testing.assert_close(first[number].double(), plain.extend(chunk)[0], atol=1e-4, rtol=1e-4)
        plain.switch(TEXTS[1])
        torch.testing.assert_close(second[number].double(), plain.extend(chunk)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cached.extend(), untouched.extend(), atol=0, rtol=0)
