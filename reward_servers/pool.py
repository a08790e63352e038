"""A run's client of the reward servers: sends references, retries what infrastructure broke."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ray import exceptions as rx
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from astrolabe_ray.config.schema import ClusterConfig, RewardConfig
from astrolabe_ray.errors import AstrolabeError, InfraFailure, PayloadsLost, ServerBusy
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from reward_servers.app import ScoreRequest, ServerSpec, server_specs
from reward_servers.deploy import connect as connect_servers
from reward_servers.deploy import down
from reward_servers.readiness import Patience
from reward_servers.scoring import Numbers, Question, questions_of
from reward_servers.window import Window

FIRST_BACKOFF_S = 0.5
MAX_BUSY_BACKOFF_S = 5.0
HOLD_EVERY_S = 15.0
HOLD_TIMEOUT_S = 10.0
NUM_LEAVING = 20
"""Servers that are on their way out are waited for so often, FIRST_BACKOFF_S each time."""
REFUSED = (ServerBusy, BackPressureError)
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

logger = logging.getLogger(__name__)


class ServeRewardPool:
    """Fulfils `roles.RewardPool` with one Serve application per scorer, which gets each view once."""

    def __init__(
        self,
        rewards: Sequence[RewardConfig],
        *,
        keep_servers: bool = True,
        client: str = "client",
        idle_timeout_s: float | None = None,
        patience: Patience | None = None,
        connect: Callable[[Sequence[ServerSpec], Patience], Sequence[Any]] = connect_servers,
    ) -> None:
        """`client` names this run to the servers, which are fair between clients and stay until nobody has
        used or held them for `idle_timeout_s`; None: for ever. `patience` is with servers that start; None:
        that of the config's defaults. `connect` gives a Serve handle for each spec.

        Raises ConfigError for an unknown reward key.
        """
        self._keep_servers, self._connect, self._idle_timeout_s = keep_servers, connect, idle_timeout_s
        self._start_patience = patience or Patience.of(ClusterConfig())
        self._client = f"{client}-{uuid.uuid4().hex[:6]}"  # two runs of one name are two
        self._rewards = {reward.key: reward for reward in rewards}
        self._questions = questions_of(rewards)
        self._specs = {spec.scorer: spec for spec in server_specs(rewards, idle_timeout_s)}
        self._windows: dict[str, Window] = {}  # by scorer
        self._handles: dict[str, Any] = {}
        self._holding: asyncio.Task[None] | None = None

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        return tuple(dict.fromkeys(question.frames for question in self._questions))

    async def start(self) -> None:
        """Find or start all servers at the same time, and hold them from now on.

        Raises ConfigError when one has no room, InfraFailure when one does not start.
        """
        self._windows = {scorer: Window(self._in_flight(scorer)) for scorer in self._specs}
        for _ in range(NUM_LEAVING):
            await self._reach(list(self._specs))
            if await self._hold():
                self._holding = asyncio.create_task(self._go_on_holding())
                return
            await asyncio.sleep(FIRST_BACKOFF_S)  # one has just decided to go
        raise InfraFailure("reward servers that are on their way out do not end; see `rewards status`")

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        began = time.monotonic()
        answers = await asyncio.gather(*(self._answer(question, rollouts) for question in self._questions))
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
        if self._holding is not None:
            self._holding.cancel()
        await asyncio.gather(*(handle.shutdown_async() for handle in self._handles.values()))
        if not self._keep_servers:
            await asyncio.to_thread(down, [spec.app_name for spec in self._specs.values()])

    async def _reach(self, scorers: Sequence[str]) -> None:
        """A thread waits for servers that start. It is told when nobody waits for it any more, because the
        run was asked to stop: the program would not end before it."""
        specs = [self._specs[scorer] for scorer in scorers]
        stop = threading.Event()
        try:
            handles = await asyncio.to_thread(self._connect, specs, replace(self._start_patience, stop=stop))
        finally:
            stop.set()
        self._handles |= dict(zip(scorers, handles, strict=True))

    async def _hold(self) -> bool:
        """Tell every replica that this run goes on; whether all servers stay."""
        replies = await asyncio.gather(*(self._hold_one(handle) for handle in self._handles.values()))
        return all(replies)

    async def _hold_one(self, handle: Any) -> bool:
        replies = handle.broadcast("hold", self._client, self._idle_timeout_s)
        try:
            return False not in await replies.results_async(timeout_s=HOLD_TIMEOUT_S, return_exceptions=True)
        except (rx.RayError, DeploymentUnavailableError, TimeoutError, asyncio.TimeoutError):
            return True  # nobody who leaves said so

    async def _go_on_holding(self) -> None:
        every_s = (
            HOLD_EVERY_S if self._idle_timeout_s is None else min(HOLD_EVERY_S, self._idle_timeout_s / 4)
        )
        is_told = False
        while True:
            await asyncio.sleep(every_s)
            try:
                await self._hold()
            except Exception as error:  # nobody waits for this task, and servers that nobody holds end
                if not is_told:
                    logger.warning("reward servers were not held this time, tried again: %r", error)
                is_told = True

    async def _answer(self, question: Question, rollouts: Sequence[Rollout]) -> Numbers:
        """What a server says of one view, asked in requests that each fit a batch."""
        size = self._specs[question.scorer].max_batch_size
        parts = [rollouts[first : first + size] for first in range(0, len(rollouts), size)]
        answers = await asyncio.gather(*(self._ask(question, part) for part in parts))
        return {name: [x for answer in answers for x in answer[name]] for name in answers[0]}

    async def _ask(self, question: Question, rollouts: Sequence[Rollout]) -> Numbers:
        """Scoring changes nothing, so a lost request is sent again, and a refused one until it is taken.

        One whose videos are lost is not: every server would look for them in vain.
        """
        reward, view = self._patience(question), self.views.index(question.frames)
        request = ScoreRequest(
            uuid.uuid4().hex,
            tuple(rollout.views[view] for rollout in rollouts),
            tuple(rollout.prompt for rollout in rollouts),
            self._client,
        )
        attempt, backoff_s = 1, FIRST_BACKOFF_S
        while True:
            try:
                async with self._windows[question.scorer].place():
                    return await self._until_taken(question.scorer, request, reward.request_timeout_s)
            except RETRIED as error:
                if isinstance(error, PayloadsLost):
                    raise
                if attempt == reward.max_attempts:
                    raise InfraFailure(
                        f"reward server of '{question.scorer}' did not answer in {attempt} "
                        f"attempts: {error!r}"
                    ) from error
                await asyncio.sleep(backoff_s)
                attempt, backoff_s = attempt + 1, 2 * backoff_s
                if isinstance(error, DeploymentUnavailableError):  # somebody took it down
                    await self._reach([question.scorer])

    async def _until_taken(self, scorer: str, request: ScoreRequest, timeout_s: float) -> Numbers:
        """One attempt. A request that the server refuses waits in its place of the window, so no other one
        is sent in its stead. Raises what went wrong as it was raised in the replica.
        """
        window, backoff_s = self._windows[scorer], FIRST_BACKOFF_S
        while True:
            try:
                answer = await _answer_within(timeout_s, self._handles[scorer].score.remote(request))
            except (*RETRIED, rx.RayTaskError) as error:
                cause = error.cause if isinstance(error, rx.RayTaskError) else error
                if not isinstance(cause, (AstrolabeError, *RETRIED)):
                    raise
                if not isinstance(cause, REFUSED):
                    raise cause from None
            else:
                window.answered()
                return answer
            window.refused()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1))
            backoff_s = min(MAX_BUSY_BACKOFF_S, 2 * backoff_s)

    def _patience(self, question: Question) -> RewardConfig:
        """Of the rewards that share an answer, the one that waits longest."""
        asking = [self._rewards[key] for key in self._questions[question]]
        return max(asking, key=lambda reward: reward.request_timeout_s * reward.max_attempts)

    def _in_flight(self, scorer: str) -> int:
        """Of the rewards that share a server, the most requests."""
        asking = [keys for question, keys in self._questions.items() if question.scorer == scorer]
        return max(self._rewards[key].max_in_flight for keys in asking for key in keys)


async def _answer_within(timeout_s: float, response: Any) -> Numbers:
    """Who no longer waits says so to the replica, which would otherwise score for nobody.

    Raises asyncio.TimeoutError, and what the replica raised.
    """
    try:
        return await asyncio.wait_for(response, timeout_s)
    except (asyncio.TimeoutError, asyncio.CancelledError):
        response.cancel()
        raise
