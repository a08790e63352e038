"""The controller's promises, with fakes of its three neighbours and no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.controller import Controller, RunOutcome
from astrolabe_ray.data.group_sampler import GroupSampler
from astrolabe_ray.errors import (
    DataFailure,
    InfraFailure,
    LearnerLost,
    PayloadsLost,
    RunStalled,
    WeightMismatch,
)
from astrolabe_ray.evaluator import Evaluator
from astrolabe_ray.types import (
    Alarm,
    Blob,
    ControllerState,
    Evaluation,
    FrameSpec,
    PolicyVersion,
    PublishedPolicy,
    Rollout,
    RolloutRequest,
    Scores,
    Span,
    StepResult,
    TensorEntry,
    TrainBatch,
    TrainPart,
    WeightAck,
    WeightManifest,
)

VIEW = FrameSpec(num_frames=2)


class FakeLearner:
    """Counts steps; its published buffer is the step number."""

    def __init__(self) -> None:
        self.version = PolicyVersion()
        self.batches: list[TrainBatch] = []
        self.saved: list[tuple[str, ControllerState]] = []
        self.resume_state: ControllerState = {"next_number": 0, "finished": [], "num_dropped": 0}
        self.step_s = self.start_s = 0.0
        self.num_loads = 0
        self.misses: list[
            tuple[int, ...]
        ] = []  # samples whose latents are lost, for one call of `train` each
        self.lost_groups: list[str] = []
        self.events: list[str] = []
        self.dies_at: list[int] = []  # steps, once each
        self.folder: Path | None = None  # where checkpoints are really made

    async def start(self) -> None:
        try:
            await asyncio.sleep(self.start_s)
        except asyncio.CancelledError:
            self.events.append("start was cancelled")
            raise

    async def accumulate(self, part: TrainPart) -> None:
        raise AssertionError("learner.accumulate is batch")

    async def train(self, batch: TrainBatch) -> StepResult:
        assert batch.step == self.version.step
        await asyncio.sleep(self.step_s)
        if batch.step in self.dies_at:
            self.dies_at.remove(batch.step)
            self.version = PolicyVersion(-1, -1)  # nothing of it is left
            raise LearnerLost("a rank was killed")
        samples = [sample for micro_batch in batch.ranks[0] for sample in micro_batch]
        lost = [samples[i].rollout_id for i in (self.misses.pop(0) if self.misses else ())]
        if lost:
            self.lost_groups = sorted({rollout_id.rpartition("/")[0] for rollout_id in lost})
            raise PayloadsLost("a node died", lost)
        self.batches.append(batch)
        self.version = replace(self.version, step=self.version.step + 1)
        return StepResult(self.version, {"loss": 0.5}, seconds=0.01)

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        entries = tuple(TensorEntry(f"t{i}", (1,), "float32", 4 * i, 4) for i in range(2))
        checksum = f"{adapter}-{self.version.step}"
        return PublishedPolicy(WeightManifest(self.version, entries, 8, checksum, 1.0), np.zeros(8, np.uint8))

    async def probe(self, seed: int) -> list[float]:
        return [float(self.version.step), 1.0]

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        self.saved.append((directory.name, dict(controller_state)))
        if self.folder is not None:
            (self.folder / directory.name).mkdir(parents=True, exist_ok=True)

    async def load(self, directory: Path) -> ControllerState:
        self.num_loads += 1
        self.version = PolicyVersion(self.num_loads, int(directory.name.rsplit("-", 1)[1]))
        return dict(self.saved).get(directory.name, self.resume_state)

    async def stop(self) -> None: ...


class FakePool:
    """Makes rollouts whose latents are their seed; an actor takes the newest policy at once."""

    capacity = 2

    def __init__(self) -> None:
        self.policy: PublishedPolicy | None = None
        self.requests: list[RolloutRequest] = []
        self.bad_prompts: set[str] = set()
        self.broken = False
        self.answer_s, self.work_s = 0.001, 0.0  # until a request is answered; of it, work on each video
        self.hangs = False
        self.probe_offset = 0.0
        self.num_modules = 1

    async def start(self) -> None: ...

    async def set_policy(self, policy: PublishedPolicy) -> None:
        self.policy = policy

    async def sync(self) -> list[WeightAck]:
        assert self.policy is not None
        m = self.policy.manifest
        return [WeightAck("rollout-0", m.version, m.checksum, self.num_modules, 0.0)]

    async def probe(self, seed: int) -> list[float]:
        assert self.policy is not None
        return [self.policy.manifest.version.step + self.probe_offset, 1.0]

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        assert self.policy is not None
        version = (pinned or self.policy).manifest.version
        self.requests.append(request)
        await asyncio.sleep(3600 if self.hangs else self.answer_s)
        if self.broken:
            raise InfraFailure("all actors are dead")
        if request.prompt in self.bad_prompts:
            raise DataFailure("cannot sample this")
        return [
            Rollout(
                request.group_id,
                i,
                request.prompt,
                seed,
                version,
                "rollout-0",
                seed,
                tuple(request.views),
                generate_s=self.work_s,
                window_start=request.window[0] if request.window else 0,
            )
            for i, seed in zip(request.indices, request.seeds, strict=True)
        ]

    async def stop(self) -> None: ...


class FakeRewards:
    views = (VIEW,)

    def __init__(self) -> None:
        self.moduli = (7, 1)  # of `fun` and `calm`, which are remainders of the seed
        self.misses: list[str] = []  # groups whose frames are lost once each
        self.loses_all = False

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        await asyncio.sleep(0)
        if self.loses_all or rollouts[0].group_id in self.misses:
            self.misses = [group_id for group_id in self.misses if group_id != rollouts[0].group_id]
            raise PayloadsLost("a node died")
        fun, calm = self.moduli
        return [Scores({"fun": float(r.seed % fun), "calm": 1.0 + r.seed % calm}, 0.001) for r in rollouts]

    async def stop(self) -> None: ...


class FakeGallery:
    async def start(self) -> None: ...

    async def encode(self, video: Blob, *, fps: int, comment: str) -> bytes:
        return b""

    async def diversity(self, videos: Sequence[Blob]) -> float:
        return 0.25

    async def looks(self, videos: Sequence[Blob]) -> dict[str, float]:
        return {"motion": 0.1, "brightness": 0.5, "saturation": 0.2}


class Notebook:
    """Records what an observer is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.phases: list[str] = []
        self.evaluations: list[Evaluation] = []
        self.spans: list[Span] = []
        self.notes: list[str] = []
        self.alarms: list[Alarm] = []
        self.on_step = lambda: None

    def phase(self, name: str, total: int) -> None:
        self.phases.append(name)

    def advance(self, count: int = 1) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None:
        self.rows.append(dict(metrics))
        self.on_step()

    def evaluated(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def alarmed(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def span(self, span: Span) -> None:
        self.spans.append(span)


def config(**changes: object) -> RunConfig:
    base: dict[str, object] = {
        "name": "fake",
        "num_steps": 3,
        "rewards": [{"key": "fun", "weight": 2.0}, {"key": "calm"}],
        "rollout": {"num_groups": 2, "group_size": 4, "batch_size": 2},
        "evaluation": {"num_prompts": 2, "rollouts_per_prompt": 3, "num_shown_videos": 1},
        "checkpoint": {"every_steps": 2},
    }
    return RunConfig.model_validate(base | changes)


class Stage:
    """A controller between fakes."""

    def __init__(
        self,
        settings: RunConfig,
        resume_from: Path | None = None,
        learner: FakeLearner | None = None,
        checkpoints: Path = Path("checkpoints"),
    ) -> None:
        self.learner, self.pool, self.notebook = learner or FakeLearner(), FakePool(), Notebook()
        self.rewards = rewards = FakeRewards()
        self.stop = asyncio.Event()
        prompts = [f"prompt {i}" for i in range(20)]
        evaluator = Evaluator(
            settings,
            ["held out a", "held out b"],
            rollouts=self.pool,
            rewards=rewards,
            gallery=FakeGallery(),
            observer=self.notebook,
        )
        self.controller = Controller(
            settings,
            rollouts=self.pool,
            rewards=rewards,
            learner=self.learner,
            evaluator=evaluator,
            prompts=GroupSampler(prompts, settings.seed),
            observer=self.notebook,
            checkpoints=checkpoints,
            stop=self.stop,
            resume_from=resume_from,
        )

    async def run(self) -> RunOutcome:
        return await asyncio.wait_for(self.controller.run(), timeout=20)


def counters(next_number: int) -> ControllerState:
    """Of a synchronous run in which nothing was lost: all that was dispatched was trained on."""
    ages = {"0": 4 * next_number} if next_number else {}
    return {
        "next_number": next_number,
        "finished": [],
        "num_dropped": 0,
        "drops": {},
        "redone": {},
        "ages_trained": ages,
        "health": {
            "first_norms": {},
            "gradients": [],
            "streaks": {"pull": 0, "zero_groups": 0} if ages else {},
        },
    }


def test_a_run_trains_every_step_on_fresh_groups_of_the_newest_policy() -> None:
    """Guards the whole loop in synchronous mode: order, numbers, versions, saves, evaluations."""
    stage = Stage(config())
    outcome = asyncio.run(stage.run())
    samples = [[s for mb in batch.ranks[0] for s in mb] for batch in stage.learner.batches]
    assert [len(batch) for batch in samples] == [8, 8, 8]
    assert [{s.policy_version.step for s in batch} for batch in samples] == [{0}, {1}, {2}]
    assert len({s.rollout_id for batch in samples for s in batch}) == 24
    assert stage.learner.saved == [
        ("checkpoint-2", counters(next_number=4)),
        ("checkpoint-3", counters(next_number=6)),
    ]
    assert [e.phase for e in outcome.evaluations] == ["before", "after"]
    assert stage.pool.policy is not None
    assert stage.pool.policy.manifest.checksum == "ema-3", "what is evaluated last is what is saved"
    assert outcome.policy_ages == {0: 24}
    assert not outcome.stopped_early


def test_evaluations_use_the_same_prompts_and_seeds_and_only_shown_videos_keep_pixels() -> None:
    """Guards the pairing of before and after."""
    stage = Stage(config())
    before, after = asyncio.run(stage.run()).evaluations
    assert [(r.prompt, r.seed) for r in before.records] == [(r.prompt, r.seed) for r in after.records]
    assert len(before.records) == 6
    assert len({r.seed for r in before.records}) == 6
    assert [r.video is not None for r in before.records] == [True, False, False, False, False, False]
    for record in before.records:
        assert record.total == 2.0 * record.scores["fun"] + record.scores["calm"]


def test_the_timeline_shows_the_work_of_each_request_and_not_its_wait() -> None:
    """Sixteen groups in a queue would look like an actor that is never idle."""
    stage = Stage(config(num_steps=1))
    stage.pool.answer_s, stage.pool.work_s = 0.2, 0.02
    asyncio.run(stage.run())
    spans = [span for span in stage.notebook.spans if span.stage == "rollout"]
    assert [span.detail["group"] for span in spans] == [0, 0, 1, 1], "two requests of two videos each"
    assert [span.end_s - span.start_s for span in spans] == pytest.approx([0.04] * 4, abs=0.01)


def test_advantages_are_centred_within_each_group() -> None:
    """Guards against mixing the prompts when rewards become advantages."""
    stage = Stage(config())
    asyncio.run(stage.run())
    batch = stage.learner.batches[0]
    by_prompt: dict[str, list[float]] = {}
    for sample in (s for mb in batch.ranks[0] for s in mb):
        by_prompt.setdefault(sample.prompt, []).append(sample.advantage)
    assert len(by_prompt) == 2
    for values in by_prompt.values():
        assert sum(values) == pytest.approx(0.0, abs=1e-9)
    assert stage.notebook.rows[0]["reward/calm"] == 1.0


def test_stale_rollouts_are_used_within_the_bound_and_never_beyond() -> None:
    """Guards max_policy_age: work overlaps training, but stays within the bound."""
    rollout = {"num_groups": 2, "group_size": 4, "batch_size": 2, "max_policy_age": 2}
    stage = Stage(config(num_steps=8, rollout=rollout))
    stage.learner.step_s = 0.01
    outcome = asyncio.run(stage.run())
    assert sum(outcome.policy_ages.values()) == 64
    assert 0 < max(outcome.policy_ages) <= 2


def test_a_prompt_that_cannot_be_sampled_is_dropped_counted_and_refilled() -> None:
    """Guards against a smaller step, a zero in place of a reward, and a hang."""
    stage = Stage(config())
    stage.pool.bad_prompts = {GroupSampler([f"prompt {i}" for i in range(20)], 0).prompt(1)}
    outcome = asyncio.run(stage.run())
    assert outcome.drops == {"DataFailure": 1}
    assert [batch.num_samples for batch in stage.learner.batches] == [8, 8, 8]


def test_a_run_in_which_everything_is_dropped_ends_with_the_cause() -> None:
    """Guards against an endless loop of drops and refills."""
    stage = Stage(config())
    stage.pool.bad_prompts = {f"prompt {i}" for i in range(20)}
    with pytest.raises(DataFailure, match="cannot sample this"):
        asyncio.run(stage.run())


def test_a_broken_pool_ends_the_run_with_its_cause() -> None:
    """Guards against a background task whose failure nobody sees."""
    stage = Stage(config())

    async def run() -> None:
        await stage.controller._set_up()
        stage.pool.broken = True
        await asyncio.wait_for(stage.controller._train_all(), 20)

    with pytest.raises(InfraFailure, match="all actors are dead"):
        asyncio.run(run())


def test_a_stop_request_finishes_the_step_saves_and_returns() -> None:
    """Guards SIGTERM: nothing of a finished step is lost and the run does not go on."""
    stage = Stage(config(num_steps=50))
    stage.notebook.on_step = stage.stop.set
    outcome = asyncio.run(stage.run())
    assert outcome.stopped_early
    assert stage.learner.saved == [("checkpoint-1", counters(next_number=2))]
    assert [e.phase for e in outcome.evaluations] == ["before"]


def test_a_stop_request_gives_an_evaluation_up_and_saves() -> None:
    """`ray job stop` kills after 3 s: a run that first ends an evaluation of minutes leaves no report."""
    stage = Stage(config())
    stage.pool.hangs = True

    async def run() -> RunOutcome:
        asyncio.get_running_loop().call_later(0.1, stage.stop.set)
        return await stage.run()

    outcome = asyncio.run(run())
    assert (outcome.stopped_early, outcome.evaluations) == (True, [])
    assert stage.learner.batches == []
    assert stage.learner.saved == [("checkpoint-0", counters(next_number=0))]


def test_a_stop_request_during_the_setup_is_honoured_at_once() -> None:
    """A run that was given up while it loads models for minutes first loads them all."""
    stage = Stage(config())
    stage.learner.start_s = 3600

    async def run() -> RunOutcome:
        asyncio.get_running_loop().call_later(0.1, stage.stop.set)
        return await stage.run()

    outcome = asyncio.run(run())
    assert (outcome.stopped_early, outcome.evaluations, outcome.num_rollouts) == (True, [], 0)
    assert stage.learner.events == ["start was cancelled"], "a role that starts on holds its room"
    assert stage.learner.saved == []


def trained_on(stage: Stage) -> list[list[tuple[str, int]]]:
    """Rollout and seed of every sample, by step."""
    return [sorted((s.rollout_id, s.latents) for m in b.ranks[0] for s in m) for b in stage.learner.batches]


def made_in_peace(stage: Stage) -> list[str]:
    """Groups for which rollouts were asked, of a run in which nothing is lost: each once."""
    made = [request.group_id for request in stage.pool.requests]
    assert len(set(made)) == len(made)
    return made


@pytest.mark.parametrize("max_policy_age", [0, 2])
def test_lost_frames_and_latents_are_made_again_with_the_same_seeds(max_policy_age: int) -> None:
    """One dead node ended the run: the same references were asked for again, in vain."""
    settings = config(
        rollout={"num_groups": 2, "group_size": 4, "batch_size": 4, "max_policy_age": max_policy_age},
    )
    whole, hit = Stage(settings), Stage(settings)
    asyncio.run(whole.run())
    hit.rewards.misses = ["train-1", "eval-before-0"]
    hit.learner.misses = [(), (5, 6)]  # one of the two groups
    outcome = asyncio.run(hit.run())
    assert sorted(chain(*trained_on(hit))) == sorted(chain(*trained_on(whole)))
    if max_policy_age == 0:
        assert trained_on(hit) == trained_on(whole)
    made = [request.group_id for request in hit.pool.requests]
    lost = ["eval-before-0", "train-1", *hit.learner.lost_groups]
    assert {name for name in made if made.count(name) > 1} == set(lost)
    assert sorted(set(made)) == sorted(set(made_in_peace(whole)))
    assert outcome.num_redone == hit.notebook.rows[-1]["groups/redone"] == len(lost) - 1
    assert [len(e.records) for e in outcome.evaluations] == [6, 6]


def test_a_group_that_is_lost_again_and_again_ends_the_run() -> None:
    """Guards against an endless loop where reading itself is broken."""
    stage = Stage(config())

    async def run() -> None:
        await stage.controller._set_up()
        stage.rewards.loses_all = True
        await asyncio.wait_for(stage.controller._train_all(), 20)

    with pytest.raises(InfraFailure, match="was lost 6 times: a node died"):
        asyncio.run(run())


def test_an_evaluation_keeps_few_videos_in_the_object_store() -> None:
    """All held-out videos at once would be spilled to disk, or fill it."""
    settings = config(evaluation={"num_prompts": 12, "rollouts_per_prompt": 4, "num_shown_videos": 0})
    stage = Stage(settings)
    open_prompts: set[str] = set()
    most = 0

    async def score(rollouts: Sequence[Rollout]) -> list[Scores]:
        nonlocal most
        await asyncio.sleep(0.01)
        started = {request.group_id for request in stage.pool.requests}
        most = max(most, len(started) - len(open_prompts))
        open_prompts.add(rollouts[0].group_id)  # from here on it is done
        return [Scores({"fun": 1.0, "calm": 1.0}) for _ in rollouts]

    stage.rewards.score = score  # type: ignore[method-assign]
    evaluator = stage.controller.evaluator
    evaluator.prompts = [f"held out {i}" for i in range(12)]

    async def run() -> Evaluation:
        await stage.controller._set_up()
        assert stage.controller.channel.newest is not None
        return await evaluator.evaluate("before", stage.controller.channel.newest)

    assert len(asyncio.run(run()).records) == 48
    assert most == 3  # one actor needs half a prompt's two requests; two prompts more


def test_a_resumed_run_continues_with_the_next_prompts() -> None:
    """Guards against training the same prompts twice after a resume."""
    whole = Stage(config())
    asyncio.run(whole.run())
    resumed = Stage(config(), resume_from=Path("checkpoint-2"))
    resumed.learner.resume_state = {"next_number": 4, "finished": [], "num_dropped": 0}
    asyncio.run(resumed.run())
    last = {(s.rollout_id, s.latents) for mb in whole.learner.batches[-1].ranks[0] for s in mb}
    assert {(s.rollout_id, s.latents) for mb in resumed.learner.batches[0].ranks[0] for s in mb} == last


def test_a_run_in_which_nothing_moves_names_the_oldest_item() -> None:
    """Guards against silent hangs."""
    stage = Stage(config(cluster={"stall_timeout_s": 0.2}))

    async def run() -> None:
        await stage.controller._set_up()
        stage.pool.hangs = True
        await asyncio.wait_for(stage.controller._train_all(), 20)

    with pytest.raises(RunStalled, match=r"2 groups in flight .oldest is number 0\)"):
        asyncio.run(run())


def test_every_finished_request_and_held_out_prompt_is_progress() -> None:
    """A healthy run was ended in the middle of a long evaluation, or while one group of many was made."""
    evaluation = {"num_prompts": 2, "rollouts_per_prompt": 4, "num_shown_videos": 0, "every_steps": 1}
    rollout = {"num_groups": 1, "group_size": 4, "batch_size": 1, "max_policy_age": 0}
    stage = Stage(
        config(num_steps=2, evaluation=evaluation, rollout=rollout, cluster={"stall_timeout_s": 0.4})
    )
    one_at_a_time = asyncio.Semaphore(1)
    generate = stage.pool.generate

    async def slowly(request: RolloutRequest, *, pinned: PublishedPolicy | None = None) -> list[Rollout]:
        async with one_at_a_time:
            await asyncio.sleep(0.15)
            return await generate(request, pinned=pinned)

    stage.pool.generate = slowly  # type: ignore[method-assign]
    outcome = asyncio.run(stage.run())
    assert [e.phase for e in outcome.evaluations] == ["before", "step-1", "after"]


@pytest.mark.parametrize(("offset", "modules"), [(5.0, 1), (0.0, 0)])
def test_weights_that_did_not_arrive_stop_the_run_before_any_step(offset: float, modules: int) -> None:
    """Guards against adapters that are shipped but never bound."""
    stage = Stage(config())
    stage.pool.probe_offset, stage.pool.num_modules = offset, modules
    with pytest.raises(WeightMismatch):
        asyncio.run(stage.run())
    assert stage.learner.batches == []


def test_mid_run_evaluations_happen_when_asked() -> None:
    """Guards evaluation.every_steps."""
    evaluation = {"num_prompts": 1, "rollouts_per_prompt": 2, "every_steps": 2}
    stage = Stage(config(num_steps=5, evaluation=evaluation))
    phases = [e.phase for e in asyncio.run(stage.run()).evaluations]
    assert phases == ["before", "step-2", "step-4", "after"]


def test_all_rollouts_of_a_group_have_one_window_and_held_out_videos_are_whole() -> None:
    """Rollouts that are scored at different times of a video have nothing to be compared by."""
    windows = {"train_window_frames": 3, "window_start": "random"}
    stage = Stage(config(algorithm=windows, num_steps=6, model={"num_latent_frames": 12}))
    asyncio.run(stage.run())
    by_group: dict[str, set[tuple[int, int] | None]] = {}
    for request in stage.pool.requests:
        by_group.setdefault(request.group_id, set()).add(request.window)
    train = {group: found for group, found in by_group.items() if group.startswith("train")}
    assert len(train) == 12 and all(len(found) == 1 for found in train.values())
    assert len(set.union(*train.values())) > 1
    assert all(found == {(0, 12)} for group, found in by_group.items() if group.startswith("eval"))
    for sample in (s for batch in stage.learner.batches for mb in batch.ranks[0] for s in mb):
        ((start, _),) = train[sample.rollout_id.split("/")[0]]
        assert sample.window_start == start


def test_a_resumed_run_selects_the_samples_that_the_whole_run_selects() -> None:
    """The share of penalised samples adapts to the steps before."""
    settings = config(
        num_steps=4,
        rollout={"num_groups": 4, "group_size": 8, "batch_size": 8},
        algorithm={"kl_samples": "disagreeing", "main_reward": "fun"},
    )
    whole, resumed = Stage(settings), Stage(settings, resume_from=Path("checkpoints/checkpoint-2"))
    whole.rewards.moduli = resumed.rewards.moduli = (10_007, 9_973)
    asyncio.run(whole.run())
    resumed.learner.resume_state = whole.learner.saved[0][1]
    asyncio.run(resumed.run())

    def weights(batch: TrainBatch) -> dict[str, float]:
        return {s.rollout_id: s.kl_weight for mb in batch.ranks[0] for s in mb}

    expected = [weights(batch) for batch in whole.learner.batches[2:]]
    assert [weights(batch) for batch in resumed.learner.batches] == expected
    assert all(sum(step.values()) == pytest.approx(32) for step in expected)
    shares = [[row["kl/share"] for row in stage.notebook.rows] for stage in (whole, resumed)]
    assert shares[1] == shares[0][2:] and shares[0][2:] != [0.1, 0.1]


def test_a_step_whose_latents_were_lost_selects_the_samples_of_an_undisturbed_run() -> None:
    """The share moved twice for it, and every later step penalised other samples."""
    settings = config(
        num_steps=4,
        rollout={"num_groups": 4, "group_size": 8, "batch_size": 8},
        algorithm={"kl_samples": "disagreeing", "main_reward": "fun"},
    )
    whole, hit = Stage(settings), Stage(settings)
    whole.rewards.moduli = hit.rewards.moduli = (10_007, 9_973)
    hit.learner.misses = [(), (5,), (6,)]  # the second step, twice
    asyncio.run(whole.run())
    asyncio.run(hit.run())
    assert hit.learner.misses == []
    shares = [[row["kl/share"] for row in stage.notebook.rows] for stage in (whole, hit)]
    assert shares[1] == shares[0] and len(set(shares[0])) > 1
    assert hit.learner.saved[-1][1]["kl_recent"] == whole.learner.saved[-1][1]["kl_recent"]


def test_a_resumed_run_is_compared_with_the_evaluations_of_its_first_part() -> None:
    """It evaluates no policy of step 0 any more; and what is not comparable must not be compared."""
    whole = Stage(config())
    before = asyncio.run(whole.run()).evaluations[0]
    assert whole.controller.evaluator.is_comparable(before)
    for other in (
        config(evaluation={"num_prompts": 2, "rollouts_per_prompt": 3, "seed": 1}),
        config(evaluation={"num_prompts": 2, "rollouts_per_prompt": 2}),
        config(rewards=[{"key": "fun", "weight": 1.0}, {"key": "calm"}]),
        config(rewards=[{"key": "fun", "weight": 2.0}]),
    ):
        assert not Stage(other).controller.evaluator.is_comparable(before)
    resumed = Stage(config(), resume_from=Path("checkpoint-2"))
    resumed.learner.resume_state = {"next_number": 4, "finished": [], "num_dropped": 0}
    resumed.controller.milestones.evaluations = [before]
    assert [e.phase for e in asyncio.run(resumed.run()).evaluations] == ["before", "after"]


def test_a_resumed_run_of_which_nothing_is_known_is_compared_with_where_it_goes_on() -> None:
    """A checkpoint of the first release, or one that was moved, would end with no gain and silent guards."""
    resumed = Stage(config(), resume_from=Path("checkpoint-2"))
    resumed.learner.resume_state = {"next_number": 4, "finished": [], "num_dropped": 0}
    evaluations = asyncio.run(resumed.run()).evaluations
    assert [(e.phase, e.version.step) for e in evaluations] == [("before", 2), ("after", 3)]
