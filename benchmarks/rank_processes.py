"""Processes that work together: all of them answer in time, or all are ended and the reason is told."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

GRACE_S = 3.0
"""After one failed: time for the others' own errors to arrive, which may tell the cause."""


def in_processes(
    work: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], timeout_s: float
) -> list[Any]:
    """`work(*arguments[i])` of each fresh process, in order.

    Raises RuntimeError with what each failed one says, TimeoutError when some give no answer within
    `timeout_s` seconds. None of the processes is left behind.
    """
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    for values in arguments:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, work, values), daemon=True)
        process.start()
        theirs.close()  # so that its death is the end of the pipe
        processes.append(process)
        pipes.append(ours)
    try:
        return _answers(pipes, timeout_s)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answers(pipes: Sequence[Connection], timeout_s: float) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(zip(pipes, range(len(pipes)), strict=True))
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                error, result = pipe.recv()
            except EOFError:
                error, result = "its process died", None
            if error is None:
                results[rank] = result
            else:
                failures[rank] = error
                deadline = min(deadline, time.monotonic() + GRACE_S)
    if failures:
        told = (f"rank {rank} of {len(pipes)} failed: {error}" for rank, error in failures.items())
        raise RuntimeError("\n".join(told))
    if waiting:
        late = ", ".join(map(str, waiting.values()))
        raise TimeoutError(f"rank {late} of {len(pipes)} gave no answer within {timeout_s:g} s")
    return [results[rank] for rank in range(len(pipes))]


def _answer(pipe: Connection, work: Callable[..., Any], values: tuple[Any, ...]) -> None:
    try:
        answer = None, work(*values)
    except Exception:
        answer = traceback.format_exc(), None
    with suppress(BrokenPipeError):
        pipe.send(answer)
