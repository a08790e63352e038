"""The learner's ranks as Ray actors: created together, called together, ended together."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from astrolabe_ray.checkpoint_folders import MANIFEST
from astrolabe_ray.errors import AstrolabeError, InfraFailure, LearnerLost, PayloadsLost
from astrolabe_ray.roles import BlobStore
from astrolabe_ray.runtime.failures import as_failure
from astrolabe_ray.runtime.placement import bundle, release, reserve
from astrolabe_ray.types import ControllerState, PublishedPolicy, StepResult, TrainBatch, TrainPart
from learner.learner_worker import LearnerWorker
from learner.shared_folder import require_seen
from learner.spec import LearnerSpec

GRACE_S = 5.0
"""After one rank failed: time for the others' own errors to arrive, which may tell the cause."""


class LearnerGroup:
    """Fulfils `roles.Learner` with `learner.num_ranks` Ray actors in one placement group.

    Only references and numbers pass through this process. When a rank dies the others are killed, for
    they would wait in a collective, and LearnerLost is raised; `start` and `load` begin a new life in the
    same room. When all of them say that latents are lost, none is at fault, and all stay.
    """

    def __init__(
        self, spec: LearnerSpec, blobs: BlobStore, *, placement_timeout_s: float, shared: Path
    ) -> None:
        """`shared`: a folder that is the same for all ranks and for this process, which `start` checks."""
        self._spec, self._blobs = spec, blobs
        self._shared = shared.expanduser().resolve()
        self._placement_timeout_s = placement_timeout_s
        self._placement: PlacementGroup | None = None
        self._ranks: list[Any] = []
        self._incarnation = 0
        self._namespace = ""

    async def start(self) -> None:
        """Place the ranks and set them up.

        Raises ConfigError when the cluster has no room for them, or they don't share the folder.
        """
        placement = self._placement = await self._room()
        self._namespace = f"learner-{uuid.uuid4().hex[:8]}"  # two runs, or two lives, may share a cluster
        host = _address_of_first_bundle(placement)
        self._ranks = [self._create(rank, placement) for rank in range(self._spec.learner.num_ranks)]
        (port,) = await self._gather([self._ranks[0].open_store.remote(host)])
        await self._require_shared_folder()
        await self._gather([rank.setup.remote(host, port) for rank in self._ranks])

    async def accumulate(self, part: TrainPart) -> None:
        """Raises ValueError for a part that was split for another number of ranks, PayloadsLost."""
        numbers = {"step": part.step, "seed": part.seed}
        shares = zip(self._ranks, part.ranks, strict=True)
        await self._gather([r.accumulate.remote(part.group_id, share, **numbers) for r, share in shares])

    async def train(self, batch: TrainBatch) -> StepResult:
        """Raises ValueError for a batch that was split for another number of ranks, PayloadsLost."""
        numbers = {
            "step": batch.step,
            "seed": batch.seed,
            "num_samples": batch.num_samples,
            "streamed": batch.streamed,
        }
        shares = zip(self._ranks, batch.ranks, strict=True)
        results = await self._gather([rank.train.remote(share, **numbers) for rank, share in shares])
        return results[0]

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        """The buffer stays in the object store, owned by this process: it outlives the ranks."""
        manifest_ref, buffer_ref = self._ranks[0].pack.options(num_returns=2).remote(adapter)
        (manifest,) = await self._gather([manifest_ref])
        return PublishedPolicy(manifest, buffer_ref)

    async def probe(self, seed: int) -> list[float]:
        return (await self._gather([rank.probe.remote(seed) for rank in self._ranks]))[0]

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        """Raises ConfigError when rank 0 wrote it, and it is not here: whoever resumes would not find it."""
        await self._gather([rank.save.remote(directory, controller_state) for rank in self._ranks])
        await require_seen(directory / MANIFEST)

    async def load(self, directory: Path) -> ControllerState:
        self._incarnation += 1
        return (await self._gather([r.load.remote(directory, self._incarnation) for r in self._ranks]))[0]

    async def stop(self) -> None:
        self._kill()
        self._release()

    async def _room(self) -> PlacementGroup:
        """That of an earlier life, which nobody could take meanwhile; another if a node of it is gone."""
        if self._placement is not None and await asyncio.to_thread(self._placement.wait, GRACE_S):
            return self._placement
        self._release()
        learner = self._spec.learner
        return await reserve(
            [bundle(learner.num_cpus, learner.num_gpus)] * learner.num_ranks,
            name="learner",
            timeout_s=self._placement_timeout_s,
        )

    def _create(self, rank: int, placement: PlacementGroup) -> Any:
        learner = self._spec.learner
        actor = ray.remote(LearnerWorker).options(
            name=f"learner-{rank}",
            namespace=self._namespace,
            num_cpus=learner.num_cpus,
            num_gpus=learner.num_gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement, rank),
        )
        return actor.remote(self._spec, rank=rank, world_size=learner.num_ranks, blobs=self._blobs)

    async def _require_shared_folder(self) -> None:
        """Every rank leaves a mark that must be seen here. The folder is made here, and by no rank."""
        self._shared.mkdir(parents=True, exist_ok=True)
        marks = [self._shared / f".{self._namespace}-{rank}" for rank in range(len(self._ranks))]
        try:
            pairs = zip(self._ranks, marks, strict=True)
            await self._gather([rank.leave_mark.remote(mark) for rank, mark in pairs])
            for mark in marks:
                await require_seen(mark)
        finally:
            for mark in marks:
                mark.unlink(missing_ok=True)

    async def _gather(self, refs: Sequence[Any]) -> list[Any]:
        """Results of all `refs`. On the first failure or timeout ends all ranks and raises the cause."""
        timeout = self._spec.learner.step_timeout_s
        tasks = [asyncio.ensure_future(_result(ref)) for ref in refs]
        try:
            done, pending = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
            if not pending and all(task.exception() is None for task in done):
                return [task.result() for task in tasks]
            if any(task.exception() is not None for task in done) and pending:
                await asyncio.wait(pending, timeout=GRACE_S)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        failures = [error for task in tasks if task.done() and (error := task.exception()) is not None]
        if len(failures) == len(tasks) and (lost := _payloads_lost(failures)) is not None:
            raise lost
        self._kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise _cause(failures, timeout)

    def _kill(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    def _release(self) -> None:
        if self._placement is not None:
            release(self._placement)
            self._placement = None


async def _result(ref: Any) -> Any:
    return await ref


def _payloads_lost(failures: Sequence[BaseException]) -> PayloadsLost | None:
    """What all ranks miss, if that is all that happened to each of them."""
    causes = [as_failure(failure, "training") for failure in failures]
    lost = [cause for cause in causes if isinstance(cause, PayloadsLost)]
    if len(lost) < len(causes):
        return None
    says_why = max(lost, key=lambda cause: len(cause.rollout_ids))
    return PayloadsLost(str(says_why), tuple(name for cause in lost for name in cause.rollout_ids))


def _cause(failures: Sequence[BaseException], timeout_s: float) -> BaseException:
    """What to raise: our own errors first, a dead rank next, since it breaks the others' connections."""
    if not failures:
        return LearnerLost(f"the learner gave no answer within learner.step_timeout_s = {timeout_s:g} s.")
    causes = [as_failure(failure, "a learner rank failed, all ranks were ended") for failure in failures]

    def rank_of(cause: BaseException) -> int:
        return 1 if isinstance(cause, InfraFailure) else 0 if isinstance(cause, AstrolabeError) else 2

    cause = min(causes, key=rank_of)
    return LearnerLost(str(cause)) if type(cause) is InfraFailure else cause


def _address_of_first_bundle(group: PlacementGroup) -> str:
    """IP address of the node where rank 0 will live."""
    node_id = placement_group_table(group)["bundles_to_node_id"][0]
    return next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id)
