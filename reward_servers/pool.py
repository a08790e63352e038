"""A run's client of the reward servers: sends references, retries what infrastructure broke."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from ray import exceptions as rx
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.errors import AstrolabeError, InfraFailure, PayloadsLost
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers.app import ScoreRequest, ServerSpec, server_specs
from reward_servers.deploy import connect as connect_servers
from reward_servers.deploy import down
from reward_servers.scoring import Numbers, Question, questions_of

FIRST_BACKOFF_S = 0.5
RETRIED = (
    rx.RayActorError,
    rx.WorkerCrashedError,
    rx.ObjectLostError,
    rx.GetTimeoutError,
    BackPressureError,
    DeploymentUnavailableError,
    InfraFailure,
    asyncio.TimeoutError,
)


class ServeRewardPool:
    """Fulfils `roles.RewardPool` with one Serve application per scorer, which gets each view once."""

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        *,
        keep_servers: bool = True,
        connect: Callable[[Sequence[ServerSpec]], Sequence[Any]] = connect_servers,
    ) -> None:
        """`connect` gives a Serve handle for each spec. Raises ConfigError for an unknown reward key."""
        self._keep_servers, self._connect = keep_servers, connect
        self._rewards = {reward.key: reward for reward in rewards}
        self._questions, self._specs = questions_of(rewards), server_specs(rewards)
        self._handles: dict[str, Any] = {}  # by scorer

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        return tuple(dict.fromkeys(question.frames for question in self._questions))

    async def start(self) -> None:
        """Find or start all servers at the same time."""
        handles = await asyncio.to_thread(self._connect, self._specs)
        self._handles = {spec.scorer: handle for spec, handle in zip(self._specs, handles, strict=True)}

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        began = time.monotonic()
        answers = await asyncio.gather(*(self._ask(question, rollouts) for question in self._questions))
        columns = {
            key: numbers[name]
            for numbers, keys in zip(answers, self._questions.values(), strict=True)
            for key, name in keys.items()
        }
        seconds = (time.monotonic() - began) / len(rollouts)
        return [
            Scores({key: columns[key][i] for key in self._rewards}, seconds) for i in range(len(rollouts))
        ]

    async def stop(self) -> None:
        """The servers stay for the next run unless the config says otherwise.

        A handle's router reports to Serve every few seconds as long as it lives, and would go on after
        the run has left the cluster.
        """
        await asyncio.gather(*(handle.shutdown_async() for handle in self._handles.values()))
        if not self._keep_servers:
            await asyncio.to_thread(down, [spec.app_name for spec in self._specs])

    async def _ask(self, question: Question, rollouts: Sequence[Rollout]) -> Numbers:
        """What a server says of one view. Scoring changes nothing, so a lost request is sent again.

        One whose videos are lost is not: every server would look for them in vain.
        """
        reward, view = self._patience(question), self.views.index(question.frames)
        request = ScoreRequest(
            uuid.uuid4().hex,
            tuple(rollout.views[view] for rollout in rollouts),
            tuple(rollout.prompt for rollout in rollouts),
        )
        backoff_s = FIRST_BACKOFF_S
        for attempt in range(1, reward.max_attempts + 1):
            try:
                response = self._handles[question.scorer].score.remote(request)
                return await asyncio.wait_for(response, reward.request_timeout_s)
            except (*RETRIED, rx.RayTaskError) as error:
                cause = error.cause if isinstance(error, rx.RayTaskError) else error
                if isinstance(cause, PayloadsLost) or not isinstance(cause, RETRIED):
                    raise (cause if isinstance(cause, AstrolabeError) else error) from None
                if attempt == reward.max_attempts:
                    raise InfraFailure(
                        f"reward server of '{question.scorer}' did not answer in {attempt} "
                        f"attempts: {cause!r}"
                    ) from error
            await asyncio.sleep(backoff_s)
            backoff_s *= 2
        raise AssertionError("max_attempts is at least 1")

    def _patience(self, question: Question) -> RewardConfig:
        """Of the rewards that share an answer, the one that waits longest."""
        asking = [self._rewards[key] for key in self._questions[question]]
        return max(asking, key=lambda reward: reward.request_timeout_s * reward.max_attempts)
