"""What a run that fails still saves: the newest trained step, if the learner had no part in the failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from astrolabe_ray.errors import RunStalled
from astrolabe_ray.tracked_learner import TrackedLearner


async def last_save(
    failure: BaseException,
    *,
    learner: TrackedLearner,
    train: asyncio.Task[Any],
    save: Callable[[], Awaitable[str | None]],
    timeout_s: float,
) -> str:
    """Let `train` come to its end, then `save`; each takes `timeout_s` at most. Never raises what they do.

    `train` has been told to stop after its step. `save` returns the name of what it wrote, or None if
    nothing is new since the last one. Returns what became of it, for people to read.
    """
    if isinstance(failure, RunStalled) and learner.is_busy:
        return "the learner is what stands still: nothing was saved after the failure"
    await asyncio.wait({train}, timeout=timeout_s)
    if not learner.is_sound:
        return "the learner failed or gave no answer: nothing was saved after the failure"
    if not train.done():  # it waits for somebody else
        train.cancel()
        await asyncio.wait({train}, timeout=timeout_s)
    saving = asyncio.ensure_future(save())
    await asyncio.wait({saving}, timeout=timeout_s)
    if not saving.done():
        saving.cancel()
        return f"the save after the failure took more than {timeout_s:g} s and was given up"
    if (error := saving.exception()) is not None:
        return f"the save after the failure failed, too: {error}"
    return f"saved {name} after the failure" if (name := saving.result()) else "no step was lost"
