"""Processes of a benchmark that work together: nobody waits for ever, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from benchmarks.rank_processes import in_processes


def work(rank: int, how: str) -> int:
    if how == "raise":
        raise ValueError("no such way")
    if how == "die":
        os._exit(9)
    if how == "hang":
        time.sleep(600)
    return rank * 10


def test_answers_come_in_the_order_of_the_ranks() -> None:
    """Bytes of one rank beside the seconds of another."""
    assert in_processes(work, [(rank, "") for rank in range(3)], 60) == [0, 10, 20]


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ("raise", RuntimeError, "rank 1 of 2 failed: (?s:.*)ValueError: no such way"),
        ("die", RuntimeError, "rank 1 of 2 failed: its process died"),
        ("hang", TimeoutError, "rank 1 of 2 gave no answer within 4 s"),
    ],
)
def test_one_that_gives_no_answer_ends_all_and_is_named(how: str, error: type[Exception], told: str) -> None:
    """Two ranks of which one is gone stood still for ever, and so did who had started them."""
    began = time.monotonic()
    with pytest.raises(error, match=told):
        in_processes(work, [(0, ""), (1, how)], 4)
    assert time.monotonic() - began < 30
    assert not multiprocessing.active_children()
