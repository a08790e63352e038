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
from reward_servers.app import ScoreRequest, ServerSpec
from reward_servers.deploy import connect as connect_servers
from reward_servers.deploy import down
from reward_servers.scorers import scorer_class

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
    """Fulfils `roles.RewardPool` with one Serve application per reward."""

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        *,
        keep_servers: bool = True,
        connect: Callable[[Sequence[ServerSpec]], Sequence[Any]] = connect_servers,
    ) -> None:
        """`connect` gives a Serve handle for each spec. Raises ConfigError for an unknown reward key."""
        self._rewards, self._keep_servers, self._connect = tuple(rewards), keep_servers, connect
        self._frames = [scorer_class(reward.key).frames for reward in rewards]
        self._handles: list[Any] = []

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        return tuple(dict.fromkeys(self._frames))

    async def start(self) -> None:
        """Find or start all servers at the same time."""
        specs = [ServerSpec.of(reward) for reward in self._rewards]
        self._handles = list(await asyncio.to_thread(self._connect, specs))

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        began = time.monotonic()
        rows = await asyncio.gather(
            *(self._one_reward(number, rollouts) for number in range(len(self._rewards)))
        )
        seconds = (time.monotonic() - began) / len(rollouts)
        keys = [reward.key for reward in self._rewards]
        return [Scores(dict(zip(keys, column, strict=True)), seconds) for column in zip(*rows, strict=True)]

    async def stop(self) -> None:
        """The servers stay for the next run unless the config says otherwise.

        A handle's router reports to Serve every few seconds as long as it lives, and would go on after
        the run has left the cluster.
        """
        await asyncio.gather(*(handle.shutdown_async() for handle in self._handles))
        if not self._keep_servers:
            await asyncio.to_thread(down, [ServerSpec.of(reward).app_name for reward in self._rewards])

    async def _one_reward(self, number: int, rollouts: Sequence[Rollout]) -> list[float]:
        """Scores of one reward. Scoring changes nothing, so a lost request is simply sent again.

        One whose videos are lost is not: every server would look for them in vain.
        """
        reward, view = self._rewards[number], self.views.index(self._frames[number])
        request = ScoreRequest(
            uuid.uuid4().hex,
            tuple(rollout.views[view] for rollout in rollouts),
            tuple(rollout.prompt for rollout in rollouts),
        )
        backoff_s = FIRST_BACKOFF_S
        for attempt in range(1, reward.max_attempts + 1):
            try:
                response = self._handles[number].score.remote(request)
                return await asyncio.wait_for(response, reward.request_timeout_s)
            except (*RETRIED, rx.RayTaskError) as error:
                cause = error.cause if isinstance(error, rx.RayTaskError) else error
                if isinstance(cause, PayloadsLost) or not isinstance(cause, RETRIED):
                    raise (cause if isinstance(cause, AstrolabeError) else error) from None
                if attempt == reward.max_attempts:
                    raise InfraFailure(
                        f"reward server of '{reward.key}' did not answer in {attempt} attempts: {cause!r}"
                    ) from error
            await asyncio.sleep(backoff_s)
            backoff_s *= 2
        raise AssertionError("max_attempts is at least 1")
