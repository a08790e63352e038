"""A run on two nodes, one of which goes with finished frames that nobody has scored."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from actors.pool import RayRolloutPool
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.controller import Controller, RunOutcome
from astrolabe_ray.data.group_sampler import GroupSampler
from astrolabe_ray.evaluator import Evaluator
from astrolabe_ray.types import (
    FrameSpec,
    PolicyVersion,
    PublishedPolicy,
    Rollout,
    Scores,
    StepResult,
    TrainBatch,
)
from reward_servers.batch_scoring import ScoreRequest, fetch
from tests.contract.test_controller import FakeGallery, FakeLearner, Notebook
from tests.tiny_model import write_tiny_model
from tests.tiny_policy import published, tiny_run

pytestmark = pytest.mark.system
LARGE = FrameSpec(height=128, width=64)
"""319 kB, which lies in the object store of the node that made it; Ray sends small values along."""
HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for an actor, and a node with room for one."""
    head = NODE | {"num_cpus": 0, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class Publisher(FakeLearner):
    """Real policies for the real actors; steps that change nothing."""

    def __init__(self, root: Path, pool: RayRolloutPool) -> None:
        super().__init__()
        self.root, self.pool = root, pool

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        policy = published(self.root, self.version.step)
        return PublishedPolicy(policy.manifest, ray.put(policy.buffer))

    async def probe(self, seed: int) -> list[float]:
        return await self.pool.probe(seed)

    async def train(self, batch: TrainBatch) -> StepResult:
        self.batches.append(batch)
        self.version = PolicyVersion(0, self.version.step + 1)
        return StepResult(self.version, {}, seconds=0.0)


class Judges:
    """Look at frames as reward servers do; at the first training group the node that made it goes."""

    views = (LARGE,)

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.seen = cluster, set[tuple[str, int]]()
        self.is_whole = True

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        if self.is_whole and rollouts[0].group_id.startswith("train"):
            self.is_whole = False
            (node,) = self.cluster.worker_nodes
            self.cluster.add_node(**NODE)
            self.cluster.remove_node(node, allow_graceful=False)
        request = ScoreRequest("r", tuple(r.views[0] for r in rollouts), tuple(r.prompt for r in rollouts))
        videos = await fetch(request)
        self.seen |= {(rollout.prompt, rollout.seed) for rollout in rollouts}
        return [Scores({"any": float(np.mean(video))}) for video in videos]

    async def stop(self) -> None: ...


async def run(config: RunConfig, pool: RayRolloutPool, judges: Judges) -> tuple[RunOutcome, Publisher]:
    learner, notebook = Publisher(Path(config.model.path), pool), Notebook()
    evaluator = Evaluator(
        config, ["a red circle"], rollouts=pool, rewards=judges, gallery=FakeGallery(), observer=notebook
    )
    controller = Controller(
        config,
        rollouts=pool,
        rewards=judges,
        learner=learner,
        evaluator=evaluator,
        prompts=GroupSampler(["a blue square", "a red square"], config.seed),
        observer=notebook,
        checkpoints=Path("nowhere"),
        stop=asyncio.Event(),
    )
    try:
        return await asyncio.wait_for(controller.run(), 150), learner
    finally:
        await pool.stop()


def test_a_run_survives_the_node_that_held_its_unscored_frames(cluster: Cluster, tmp_path: Path) -> None:
    """The run ended after minutes of asking for the same lost references."""
    root = write_tiny_model(tmp_path / "tiny")
    config = tiny_run(root, num_groups=1, min_actors=1, max_actors=1, placement_timeout_s=60).model_copy(
        update={"num_steps": 1}
    )
    evaluation = config.evaluation.model_copy(update={"num_prompts": 1, "num_shown_videos": 0})
    config = config.model_copy(update={"evaluation": evaluation})
    judges = Judges(cluster)
    outcome, learner = asyncio.run(run(config, RayRolloutPool(config), judges))
    assert outcome.num_redone == 1
    assert outcome.drops == {}
    (batch,) = learner.batches
    samples = [sample for micro_batch in batch.ranks[0] for sample in micro_batch]
    assert sorted(sample.rollout_id for sample in samples) == [f"train-0/{i}" for i in range(4)]
    assert len(judges.seen) == 4 + 4, "each held-out and each trained video was seen"
