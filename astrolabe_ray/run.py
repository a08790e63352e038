"""One run, from its roles to its report: what `launch.py train` does once roles exist.

Knows files and the controller, and no Ray: the same function runs the oracle with in-process roles.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.controller import Controller, RunOutcome
from astrolabe_ray.data.group_sampler import GroupSampler
from astrolabe_ray.data.prompts import load_heldout, load_prompts
from astrolabe_ray.errors import InfraFailure
from astrolabe_ray.evaluator import Evaluator
from astrolabe_ray.report.run_dir import RunDir
from astrolabe_ray.roles import Gallery, Learner, RewardPool, RolloutPool, RunObserver
from astrolabe_ray.types import ControllerState, Evaluation

STOP_TIMEOUT_S = 120.0
"""Waiting for a reward server that is to end takes a minute."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Roles:
    """Who does the work of a run."""

    rollouts: RolloutPool
    rewards: RewardPool
    learner: Learner
    gallery: Gallery

    async def stop(self) -> list[BaseException]:
        """Stop all of them, each for STOP_TIMEOUT_S at most; what went wrong is logged and returned."""
        stops = {
            name: asyncio.ensure_future(role.stop())
            for name, role in (
                ("rollout actors", self.rollouts),
                ("reward servers", self.rewards),
                ("learner", self.learner),
            )
        }
        _, pending = await asyncio.wait(stops.values(), timeout=STOP_TIMEOUT_S)
        failures: list[BaseException] = []
        for name, stop in stops.items():
            if stop in pending:
                stop.cancel()
                failures.append(InfraFailure(f"the {name} did not stop within {STOP_TIMEOUT_S:g} s."))
            else:
                (result,) = await asyncio.gather(stop, return_exceptions=True)
                if result is None:
                    continue
                failures.append(result)
            log.warning("stopping the %s: %r", name, failures[-1])
        return failures


def _sampler(config: RunConfig) -> GroupSampler:
    num_groups = config.rollout.num_groups
    shared = (num_groups, config.data.prompts_per_step or num_groups)
    return GroupSampler(load_prompts(config.data.train_prompts), config.seed, shared=shared)


async def run_training(
    config: RunConfig,
    roles: Roles,
    run_dir: RunDir,
    observer: RunObserver,
    stop: asyncio.Event,
    resume_from: Path | None = None,
    earlier: Sequence[Evaluation] = (),
    notes: ControllerState | None = None,
) -> RunOutcome:
    """Train and evaluate; `observer` records it all. The roles are stopped in any case.

    Raises what ended the run; what went wrong in stopping only if nothing else did.
    `earlier`: evaluations before `resume_from`. Those of other prompts, seeds or rewards are left out.
    `notes`: what every checkpoint says besides counters.
    """
    evaluator = Evaluator(
        config,
        load_heldout(config.data.heldout_prompts, config.evaluation.num_prompts),
        rollouts=roles.rollouts,
        rewards=roles.rewards,
        gallery=roles.gallery,
        observer=observer,
    )
    controller = Controller(
        config,
        rollouts=roles.rollouts,
        rewards=roles.rewards,
        learner=roles.learner,
        evaluator=evaluator,
        prompts=_sampler(config),
        observer=observer,
        checkpoints=run_dir.checkpoints,
        stop=stop,
        resume_from=resume_from,
        earlier=[evaluation for evaluation in earlier if evaluator.is_comparable(evaluation)],
        notes=notes,
    )
    try:
        outcome = await controller.run()
    except BaseException:
        await roles.stop()
        raise
    for failure in await roles.stop():
        raise failure
    return outcome
