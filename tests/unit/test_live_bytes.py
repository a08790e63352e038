"""What the benchmarks call memory, against tensors counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.live_bytes import LiveBytes

KB = 1024  # bytes of 256 float32


def counted(*works: Callable[[], object]) -> LiveBytes:
    """After the works, each in a thread of its own; what a work returns stays until all are done."""
    live = LiveBytes()
    kept = []
    for work in works:
        with ThreadPoolExecutor(1, initializer=live.count_here) as thread:
            kept.append(thread.submit(work).result())
    return live


def test_what_is_gone_is_not_counted_and_what_was_there_at_once_is_the_peak() -> None:
    """A sum of all that was ever made grows with the length of a video, its peak does not."""

    def work() -> None:
        for _ in range(5):
            first = torch.zeros(256)
            second = first + 1  # 2 KB at once
            del first, second

    live = counted(work)
    assert (live.now, live.peak) == (0, 2 * KB)


def test_views_and_changes_in_place_hold_nothing_of_their_own() -> None:
    """A cache that is read through slices would count once for each chunk."""

    def work() -> None:
        x = torch.zeros(4, 64)
        x[1:3].add_(1)
        x.view(-1)[::2].copy_(torch.ones(128).view(2, 64).flatten())

    assert counted(work).peak == KB + KB // 2


def test_threads_add_up() -> None:
    """Sampling and training have a thread each."""
    assert counted(lambda: torch.zeros(256), lambda: torch.zeros(256)).peak == 2 * KB


def test_what_is_kept_for_a_backward_pass_is_counted_until_it_is_over() -> None:
    """Activations are what a window is to save."""
    during: list[int] = []

    def work() -> None:
        w = torch.ones(256, requires_grad=True)  # 1 KB, and 1 KB of gradient in the end
        y = (w * 2).exp().exp().sum()  # two results of exp are kept
        during.append(live.now)
        y.backward()
        del y
        during.append(live.now)

    live = LiveBytes()
    with ThreadPoolExecutor(1, initializer=live.count_here) as thread:
        thread.submit(work).result()
    assert during == [3 * KB + 4, 2 * KB]
