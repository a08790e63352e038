"""One scorer behind Ray Serve: batches requests of all runs that share it.

Produces: scores. Waits for: requests. Bounded by: MAX_WAITING requests of a replica, of which each client has
an equal part; beyond it a client is refused and slows down.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ray import serve

from astrolabe_ray.config.plan import servers
from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import scorer_name
from astrolabe_ray.errors import DataFailure, ServerBusy
from reward_servers.batch_scoring import ScoreRequest, ScorerFault, fetch, score_together
from reward_servers.fair_queue import FairQueue, Waiting
from reward_servers.identity import files_of, made_of
from reward_servers.known_video import answers_of, changed, complaint_of, warm_up
from reward_servers.lease import Lease
from reward_servers.scorers import Scorer, ScorerSetup, card_of, card_of_scorer, load_scorer, setup_of
from reward_servers.scoring import Numbers
from reward_servers.usage import ReplicaReport, Usage

MAX_WAITING = 128
"""Requests of all clients that a replica keeps."""
MAX_ONGOING_REQUESTS = 2 * MAX_WAITING
"""Of Serve; more than MAX_WAITING, so that a client who is to be refused does not wait for that."""
MAX_QUEUED_REQUESTS = 256
BATCH_WAIT_S = 0.02
LATE_AFTER_S = 2.0
"""A batch goes without a request whose frames are not here by then."""
STUCK_AFTER_S = 300.0
HEALTH_PERIOD_S = 5.0
VERIFY_EVERY_S = 30.0
"""How often a replica scores the known video."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scaling:
    """How many replicas a server has and how long it stays. May change while it runs."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 4
    upscale_delay_s: float = 5
    downscale_delay_s: float = 120
    idle_timeout_s: float | None = None

    @classmethod
    def of(cls, reward: RewardConfig, idle_timeout_s: float | None) -> Scaling:
        return cls(
            reward.min_replicas,
            reward.max_replicas,
            reward.target_ongoing_requests,
            reward.upscale_delay_s,
            reward.downscale_delay_s,
            idle_timeout_s,
        )


@dataclass(frozen=True)
class ServerSpec:
    """What makes two reward servers the same: these fields go into the name, `code` behind the others."""

    scorer: str
    num_cpus: float
    num_gpus: float
    max_batch_size: int
    frames_per_forward: int
    folder: str  # absolute; empty for a scorer without files
    options: tuple[tuple[str, str], ...]
    python: str  # interpreter of the replicas; empty: that of the cluster
    packages: tuple[str, ...]  # what pip installs for them
    code: str  # digest of the scorer's source and files
    scaling: Scaling = dataclass_field(default=Scaling(), compare=False)  # not in the name

    @classmethod
    def of(cls, reward: RewardConfig, idle_timeout_s: float | None = None) -> ServerSpec:
        """Raises ConfigError for an unknown reward key or option."""
        card, setup = card_of(reward.key), setup_of(reward)
        has_files = bool(card.files or card.file_options)
        return cls(
            scorer=scorer_name(reward.key),
            num_cpus=reward.num_cpus,
            num_gpus=reward.num_gpus,
            max_batch_size=reward.max_batch_size,
            frames_per_forward=reward.frames_per_forward,
            folder=str(setup.folder) if has_files else "",
            options=tuple(sorted(setup.options.items())),
            python=reward.python,
            packages=tuple(reward.packages.split()),
            code=made_of(scorer_name(reward.key), files_of(card, setup)),
            scaling=Scaling.of(reward, idle_timeout_s),
        )

    @property
    def setup(self) -> ScorerSetup:
        device = "cuda" if self.num_gpus else "cpu"
        return ScorerSetup(Path(self.folder), device, self.frames_per_forward, dict(self.options))

    @property
    def runtime_env(self) -> dict[str, Any]:
        """What Ray makes for the replicas. Example: `{"py_executable": "/opt/hpsv3/bin/python"}`."""
        python = {"py_executable": self.python} if self.python else {}
        return python | ({"pip": list(self.packages)} if self.packages else {})

    @property
    def settings_name(self) -> str:
        """What the names of these servers begin with, whatever code they run."""
        settings = {n: value for n, value in asdict(self).items() if n not in ("code", "scaling")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return f"reward-{re.sub('[^A-Za-z0-9_]', '-', self.scorer)}-{digest[:8]}-"

    @property
    def app_name(self) -> str:
        """Example: `reward-tiny_clip-1a2b3c4d-5e6f7a8b`."""
        return self.settings_name + self.code[:8]


def server_specs(rewards: Sequence[RewardConfig], idle_timeout_s: float | None = None) -> list[ServerSpec]:
    """A server for each scorer of `rewards`, in their order. Raises ConfigError as `ServerSpec.of` does."""
    return [ServerSpec.of(reward, idle_timeout_s) for reward in servers(rewards).values()]


class RewardServer:
    """A replica: loads its scorer, proves that it scores, then serves batches."""

    def __init__(self, spec: ServerSpec) -> None:
        """Returns after the largest batch has been scored once. Raises what the scorer raises."""
        cv2.setNumThreads(1)
        torch.set_num_threads(max(1, int(spec.num_cpus)))
        self._spec = spec
        self._scorer: Scorer = load_scorer(spec.scorer, spec.setup)
        self._card = card_of_scorer(spec.scorer)
        self._known: dict[str, float] = {}
        if not self._card.asks_elsewhere:
            warm_up(self._scorer, self._card, batch_size=spec.max_batch_size, device=spec.setup.device)
            self._known = answers_of(self._scorer, self._card)
        self._verified_at = time.monotonic()
        self._queue, self._usage = FairQueue(MAX_WAITING), Usage()
        self._lease = Lease(spec.scaling.idle_timeout_s)
        self._is_leaving = False
        self._scoring = asyncio.Lock()
        self._busy_since: float | None = None
        self._fault: ScorerFault | None = None  # for which this replica is to be replaced
        self._worker: asyncio.Task[None] | None = None

    async def score(self, request: ScoreRequest) -> Numbers:
        """Finite numbers by name, one per video.

        Raises DataFailure, PayloadsLost, ServerBusy, and ScorerFault, after which nothing more is taken.
        """
        if not request.videos:
            raise DataFailure(f"request {request.request_id} brings no videos; ask only for those to score")
        if len(request.videos) > self._spec.max_batch_size:
            raise DataFailure(
                f"request {request.request_id} brings {len(request.videos)} videos; this server scores at "
                f"most {self._spec.max_batch_size} together. Ask for them in several requests."
            )
        if self._fault is not None:
            raise ServerBusy(f"this replica is about to be replaced: {self._fault}")
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        self._lease.renew()
        self._usage.heard_of(request.client)
        began = time.monotonic()
        answered = self._queue.put(request)
        if self._busy_since is not None:
            self._fetch_ahead()
        answer = await answered
        self._usage.answered(time.monotonic() - began, len(request.videos))
        return answer

    async def hold(self, client: str, idle_timeout_s: float | None) -> bool:
        """A client says that it goes on using this server; False: too late, the server is on its way out."""
        if not self._is_leaving:
            self._usage.heard_of(client)
            self._lease.lengthen(idle_timeout_s)
        return not self._is_leaving

    async def report(self) -> ReplicaReport:
        """What this replica did lately."""
        return ReplicaReport(
            spec=self._spec,
            pid=os.getpid(),
            num_waiting=self._queue.num_waiting,
            num_videos=self._usage.num_videos,
            batch_sizes=dict(self._usage.batch_sizes),
            answers=self._usage.answers,
            clients=self._usage.clients,
            lease_left_s=self._lease.left_s,
        )

    async def check_health(self) -> None:
        """Serve asks every HEALTH_PERIOD_S and replaces a replica that raises three times.

        Raises ScorerFault after one, RuntimeError when the scorer has been at one batch for far too long or
        no longer says of the known video what it said, and what the scorer raises. A server that nobody
        holds ends here, too.
        """
        if self._fault is not None:
            raise self._fault
        if self._busy_since is not None and time.monotonic() - self._busy_since > STUCK_AFTER_S:
            raise RuntimeError(f"the scorer has been busy with one batch for over {STUCK_AFTER_S:g} s")
        if self._worker is not None and self._worker.done():
            raise RuntimeError(f"this replica no longer takes requests: {self._worker}")
        if self._lease.left_s <= 0 and not self._is_leaving:
            await self._leave()
        elif self._known and time.monotonic() - self._verified_at >= VERIFY_EVERY_S:
            await self._verify()

    async def _leave(self) -> None:
        self._is_leaving = True
        name = serve.get_replica_context().app_name
        logger.warning("reward server %s ends: nobody has used or held it for its idle timeout", name)
        await asyncio.to_thread(serve.delete, name, _blocking=False)

    async def _verify(self) -> None:
        """Between two batches. Only a success counts, so a replica that failed is asked again at once."""
        async with self._scoring:
            now = await asyncio.to_thread(answers_of, self._scorer, self._card)
        if differences := changed(self._known, now):
            raise RuntimeError(f"the known video is judged otherwise than before: {'; '.join(differences)}")
        self._verified_at = time.monotonic()

    async def _work(self) -> None:
        while True:
            await self._work_once()

    async def _work_once(self) -> None:
        """Whatever goes wrong with a batch is told to those who asked for it.

        A function of its own: names in the loop would keep the frames of the last batch until the next one.
        """
        batch = await self._with_frames(await self._queue.batch(self._spec.max_batch_size, BATCH_WAIT_S))
        results: Sequence[Numbers | BaseException]
        try:
            results = await self._score_batch(batch) if batch else []
        except Exception as error:  # the outermost loop of this role
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            waiting.tell(result)

    async def _with_frames(self, batch: Sequence[Waiting]) -> list[Waiting]:
        """Those whose frames are here or lost. What one client has lost must not hold up the others: its
        requests are set aside for a later batch. Fetches in parallel."""
        asked = [_frames_of(waiting) for waiting in batch]
        await asyncio.wait(asked, timeout=LATE_AFTER_S)
        for waiting, frames in zip(batch, asked, strict=True):
            if not frames.done():
                self._queue.set_aside(waiting, frames)
        both = zip(batch, asked, strict=True)
        return [waiting for waiting, frames in both if frames.done() and not waiting.answer.done()]

    def _fetch_ahead(self) -> None:
        """Frames of the next batch travel while this one is scored."""
        for waiting in self._queue.to_fetch(self._spec.max_batch_size):
            _frames_of(waiting)

    async def _score_batch(self, batch: Sequence[Waiting]) -> list[Numbers | BaseException]:
        """One forward for several requests, whose frames are here or lost. Scores off the event loop."""
        requests = [waiting.request for waiting in batch]
        asked = [waiting.frames for waiting in batch if waiting.frames is not None]
        fetched = await asyncio.gather(*asked, return_exceptions=True)
        async with self._scoring:
            self._busy_since = time.monotonic()
            self._fetch_ahead()
            try:
                results = await asyncio.to_thread(
                    score_together, self._scorer, fetched, requests, self._complaint
                )
            finally:
                self._busy_since = None
        self._fault = next((each for each in results if isinstance(each, ScorerFault)), self._fault)
        self._usage.batch_sizes[sum(len(request.videos) for request in requests)] += 1
        return results

    def _complaint(self) -> str:
        """Called while a batch is scored, so nothing else is."""
        return complaint_of(self._scorer, self._card, self._known)


def _frames_of(waiting: Waiting) -> asyncio.Future[np.ndarray]:
    """On their way from the first call on."""
    if waiting.frames is None:
        waiting.frames = asyncio.ensure_future(fetch(waiting.request))
        waiting.frames.add_done_callback(lambda frames: frames.cancelled() or frames.exception())  # seen
    return waiting.frames


def application(spec: ServerSpec, runtime_env: Mapping[str, Any]) -> serve.Application:
    """The Serve application of a reward server, ready to run.

    Its version is fixed: deployed again with another `Scaling` and the same environment, its replicas stay as
    they are. Serve would add the working folder of whoever deploys it, so `runtime_env` names one, or None.
    """
    scaling = spec.scaling
    deployment: Any = serve.deployment(
        RewardServer,
        name="RewardServer",
        ray_actor_options={
            "num_cpus": spec.num_cpus,
            "num_gpus": spec.num_gpus,
            "runtime_env": {"working_dir": None, **runtime_env},
        },
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "look_back_period_s": 10,
            "metrics_interval_s": 2,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=STUCK_AFTER_S,
        max_constructor_retry_count=3,
    )
    return deployment.options(version=spec.app_name, _internal=True).bind(spec)
