"""Which frames a chunk sees, and where the KV cache keeps them: integers only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import FrameSlots
from tests.plain_wan import window_lists


@st.composite
def rules(draw: st.DrawFn) -> ContextRule:
    """Rules with sinks from none to more than two chunks, and windows from the tightest to none."""
    chunk = draw(st.integers(1, 4))
    sink = draw(st.integers(0, 2 * chunk + 1))
    window = draw(st.none() | st.integers(sink + chunk, sink + 3 * chunk + 1))
    return ContextRule(chunk, window, sink)


def expanded(runs: list[tuple[int, int]]) -> list[int]:
    return [frame for start, end in runs for frame in range(start, end)]


def test_a_full_window_shows_the_sink_and_the_newest_frames() -> None:
    """An off-by-one would show a chunk a frame too many or hide the sink."""
    rule = ContextRule(chunk_frames=3, window_frames=7, sink_frames=1)
    assert rule.visible(0, 3) == []
    assert rule.visible(3, 6) == [(0, 3)]
    assert rule.visible(6, 9) == [(0, 1), (3, 6)]
    assert rule.visible(9, 12) == [(0, 1), (6, 9)]


@given(rules(), st.integers(1, 20))
def test_visible_frames_are_those_of_a_list_that_drops_behind_the_sink(
    rule: ContextRule, length: int
) -> None:
    """The closed form could differ from the definition for odd windows or a short last chunk."""
    for (start, end), frames in zip(rule.chunks(length), window_lists(rule, length), strict=True):
        assert expanded([*rule.visible(start, end), (start, end)]) == frames


@given(rules(), st.integers(1, 20))
def test_the_cache_holds_exactly_the_visible_frames_in_its_first_slots(
    rule: ContextRule, length: int
) -> None:
    """A wrong slot would overwrite a frame that is still visible, or leave an evicted one readable."""
    slots = FrameSlots(rule, length)
    written: dict[int, int] = {}
    for (start, end), frames in zip(rule.chunks(length), window_lists(rule, length), strict=True):
        slots.begin(end - start)
        for offset, slot, count in slots.writes():
            written.update({slot + i: start + offset + i for i in range(count)})
        assert sorted(written) == list(range(slots.num_held))
        assert sorted(written.values()) == frames
        assert len(slots.writes()) <= 2


def test_a_window_too_small_for_sink_and_chunk_is_refused() -> None:
    """Without the check, a chunk would evict the sink or itself."""
    with pytest.raises(ConfigError, match="sink_frames 2 \\+ chunk_frames 3 = 5"):
        ContextRule(3, 4, 2)


def test_a_cache_without_a_window_refuses_more_frames_than_it_was_made_for() -> None:
    """The ring would silently overwrite frames that the rule says are visible."""
    slots = FrameSlots(ContextRule(3, None, 0), 4)
    slots.begin(3)
    with pytest.raises(ConfigError, match="frame 6 exceeds a KV cache made for 4 frames"):
        slots.begin(3)


def test_a_windowed_cache_goes_on_for_ever() -> None:
    """Interactive videos have no length known beforehand."""
    slots = FrameSlots(ContextRule(3, 7, 1), 7)
    for _ in range(1000):
        slots.begin(3)
    assert slots.num_held == 7


def test_a_chunk_longer_than_the_rule_is_refused() -> None:
    """It would push frames out of the window that its own rule keeps."""
    with pytest.raises(ConfigError, match="a chunk of 4 frames is not within"):
        FrameSlots(ContextRule(3, None, 0), 9).begin(4)


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 20))
def test_the_sink_moves_on_by_what_was_evicted(chunk: int, sink: int, end: int) -> None:
    """With relative positions the sink must stay next to the oldest frame of the window."""
    window = sink + chunk + 1
    relative = ContextRule(chunk, window, sink, "relative")
    assert relative.sink_shift(end) == (max(0, end - window) if sink else 0)
    assert ContextRule(chunk, window, sink).sink_shift(end) == 0
