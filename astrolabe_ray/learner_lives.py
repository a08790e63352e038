"""Goes on when the learner dies: its next life begins at the newest checkpoint of the run.

The rest of the run stays: rollout actors and reward servers with their loaded models. Rollouts of lost steps
are thrown away, and made again with the same seeds, as after a resume.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from astrolabe_ray.errors import LearnerLost
from astrolabe_ray.waiting import unless_stopped

if TYPE_CHECKING:
    from astrolabe_ray.controller import Controller

MAX_DEATHS = 3
"""Of the learner since one and the same checkpoint; more are no accident."""

log = logging.getLogger(__name__)


async def outlive_learner(run: Controller, train: Callable[[], Awaitable[None]]) -> None:
    """`train`, begun again from the newest checkpoint whenever it raises LearnerLost.

    Raises it when there is no checkpoint, or after more than MAX_DEATHS deaths since the same one, and
    ConfigError when there is no room for another learner.
    """
    deaths: Counter[Path] = Counter()
    checkpoint: Path | None = None
    while True:
        try:
            if checkpoint is None or await unless_stopped(_begin_life(run, checkpoint), run.stop):
                await train()
            return
        except LearnerLost as failure:
            checkpoint = run.milestones.newest_checkpoint() or run.resume_from
            if checkpoint is None or deaths[checkpoint] == MAX_DEATHS:
                raise
            deaths[checkpoint] += 1
            log.warning("the learner begins again at %s: %s", checkpoint, failure)


async def take_up(run: Controller, checkpoint: Path | None) -> None:
    """Bring learner, buffer and rollout actors to where `checkpoint` was saved; None: to the start."""
    if checkpoint is not None:
        state = await run.learner.load(checkpoint)
        for note in state.get("notes", ()):
            run.observer.note(note)
        run.buffer = run.buffer.next_life(state)
        run.batches.restore(state)
        run.milestones.health.restore(state)
    policy = await run.channel.publish()
    await run.channel.prove()
    run.buffer.version = policy.manifest.version
    run.milestones.saved_step = run.buffer.version.step  # nothing is new yet


async def _begin_life(run: Controller, checkpoint: Path) -> bool:
    """True, to tell it from the None of a stop."""
    await run.learner.start()
    await take_up(run, checkpoint)
    run.milestones.forget_after(run.buffer.version.step)
    return True
