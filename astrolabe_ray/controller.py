"""The only place with policy: order, slots, staleness, evaluation, checkpoints, when to stop.

Three loops on one asyncio event loop, no Ray and no torch.nn: with in-process roles the same code is
the oracle for the distributed run. Nothing here ever holds pixels or latents, only blobs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from astrolabe_ray.background import Background
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.data.group_sampler import GroupSampler
from astrolabe_ray.errors import DataFailure, InfraFailure, LearnerLost, PayloadsLost
from astrolabe_ray.evaluator import Evaluator
from astrolabe_ray.group_requests import group_requests
from astrolabe_ray.group_stream import GroupStream
from astrolabe_ray.last_save import last_save
from astrolabe_ray.learner_lives import outlive_learner, take_up
from astrolabe_ray.milestones import Milestones
from astrolabe_ray.roles import Learner, RewardPool, RolloutPool, RunObserver
from astrolabe_ray.rollout_buffer import RolloutBuffer
from astrolabe_ray.step_batch import StepBatches
from astrolabe_ray.step_metrics import PhaseClock, step_metrics
from astrolabe_ray.timeline import Timeline
from astrolabe_ray.tracked_learner import TrackedLearner
from astrolabe_ray.types import (
    Alarm,
    ControllerState,
    Evaluation,
    Rollout,
    RolloutGroup,
    RolloutRequest,
    StepResult,
    TrainBatch,
)
from astrolabe_ray.waiting import Watchdog, unless_stopped
from astrolabe_ray.weight_channel import WeightChannel

MAX_CONSECUTIVE_DROPS = 20
MAX_REDOS = 5
"""Times that one group is rolled out again because its payloads were lost; nodes do not die that often."""

log = logging.getLogger(__name__)


@dataclass
class RunOutcome:
    """What a run leaves behind for its summary."""

    evaluations: list[Evaluation]
    num_rollouts: int  # trained on since the run began or was resumed; those of lost steps do not count
    train_wall_s: float
    policy_ages: dict[int, int]  # policy age -> rollouts trained on
    drops: dict[str, int]
    num_redone: int  # groups rolled out again because their payloads were lost
    stopped_early: bool
    sampling: list[str]  # how the rollout actors sampled: attention kernel, dtype, device
    seconds: dict[str, float]  # wall time per phase
    alarms: list[Alarm] = field(default_factory=list)
    stopped_by: str | None = None  # the guard of config.health.stop_on that ended the run


class Controller:
    """Runs rollouts, scoring and training against each other until `num_steps` steps are published.

    `stop` asks for an orderly end: the step under way is finished and saved, an evaluation is given up,
    and so is the setup. `earlier`: evaluations of the part of the run that `resume_from` ends. `notes`: what
    every checkpoint says besides counters.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        rollouts: RolloutPool,
        rewards: RewardPool,
        learner: Learner,
        evaluator: Evaluator,
        prompts: GroupSampler,
        observer: RunObserver,
        checkpoints: Path,
        stop: asyncio.Event,
        resume_from: Path | None = None,
        earlier: Sequence[Evaluation] = (),
        notes: ControllerState | None = None,
    ) -> None:
        self.config = config
        self.rollouts, self.rewards, self.learner = rollouts, rewards, TrackedLearner(learner)
        self.evaluator, self.prompts, self.observer = evaluator, prompts, observer
        self.stop, self.resume_from = stop, resume_from
        self.channel = WeightChannel(self.learner, rollouts)
        self.batches = StepBatches(config)
        self.buffer = RolloutBuffer(config.rollout.num_groups, config.rollout.max_policy_age)
        self._background, self._timeline = Background(), Timeline(observer)
        self._unscored: asyncio.Queue[tuple[int, str, list[Rollout]]] = asyncio.Queue()
        self._consecutive_drops = self._num_rollouts_before = 0  # the latter: in the run that is resumed
        self._book: Callable[[], None] | None = None  # what is to be done for a step that was trained
        self._watchdog = Watchdog(config.cluster.stall_timeout_s)
        self.milestones = Milestones(
            config,
            learner=self.learner,
            evaluator=evaluator,
            observer=observer,
            timeline=self._timeline,
            background=self._background,
            checkpoints=checkpoints,
            stop=stop,
            on_progress=self._progress,
            earlier=earlier,
            notes=notes,
        )

    async def run(self) -> RunOutcome:
        """The whole run. Raises what stopped it; roles are left to the caller to stop."""
        clock = PhaseClock()
        with clock.phase("setup"):
            is_set_up = await unless_stopped(self._set_up(), self.stop)
        if is_set_up:
            await self._carry_out(clock)
        evaluations = self.milestones.evaluations
        return RunOutcome(
            evaluations=evaluations,
            num_rollouts=self.buffer.ages_trained.total() - self._num_rollouts_before,
            train_wall_s=clock.seconds.get("train", 0.0),
            policy_ages=dict(self.buffer.ages_trained),
            drops=dict(self.buffer.drops),
            num_redone=self.buffer.redone.total(),
            stopped_early=not any(evaluation.phase == "after" for evaluation in evaluations),
            sampling=sorted(self.channel.sampling),
            seconds=clock.seconds,
            alarms=self.milestones.health.alarms,
            stopped_by=self.milestones.health.stopped_by,
        )

    async def _carry_out(self, clock: PhaseClock) -> None:
        """Everything after the setup."""
        assert self.channel.newest is not None, "the setup published a policy"
        if self.milestones.start is None:
            with clock.phase("evaluate before"):
                await self.milestones.evaluate("before", self.channel.newest)
        with clock.phase("train"):
            await outlive_learner(self, self._train_all)
        if not self.stop.is_set():
            with clock.phase("evaluate after"):
                await self.milestones.evaluate("after", await self.channel.publish(adapter="ema"))

    async def _set_up(self) -> bool:
        """Start the roles and bring them to one policy. True, to tell it from the None of a stop."""
        self.observer.phase("setup", 5)
        roles = (self.learner, self.rollouts, self.rewards, self.evaluator)
        starts = [asyncio.ensure_future(role.start()) for role in roles]
        try:
            for role in asyncio.as_completed(starts):
                await role
                self.observer.advance()
        finally:  # after a failure, or when the run was asked to stop
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
        await take_up(self, self.resume_from)
        self._num_rollouts_before = self.buffer.ages_trained.total()
        self.observer.advance()
        return True

    async def _train_all(self) -> None:
        """Run the three loops and the watchdog; the first failure of any of them ends them all, after a save
        if the learner had no part in it."""
        self._watchdog.moved()
        self._background.failure, self._unscored = None, asyncio.Queue()  # of an earlier life of the learner
        self._book = None
        self._stream = GroupStream(self.config, self.learner, self.batches, self._timeline)
        train = self._background.spawn(self._train_loop())
        watch = self._watchdog.watch(lambda: self.buffer.where())
        for loop in (self._rollout_loop(), self._score_loop(), watch, self._wake_on_stop()):
            self._background.spawn(loop)
        try:
            while not train.done() and self._background.failure is None:
                await self._background.moved()
            failure = self._background.failure or train.exception()
            if isinstance(failure, LearnerLost):
                raise failure
            if failure is not None:
                self.stop.set()  # the step under way is the last
                limit = self.config.learner.step_timeout_s
                save = self._save_after_failure
                told = last_save(failure, learner=self.learner, train=train, save=save, timeout_s=limit)
                self.observer.note(await told)
                raise failure
        finally:
            await self._background.cancel()

    async def _rollout_loop(self) -> None:
        """Produces: groups in flight. Waits for: a free slot. Unblocked by: publish and drops.
        Bounded by: (max_policy_age + 1) * num_groups slots."""
        while True:
            while self.buffer.may_dispatch(self.config.num_steps) and not self.stop.is_set():
                self._background.spawn(self._roll_out_group(self.buffer.dispatch()))
            await self._background.moved()

    async def _roll_out_group(self, number: int) -> None:
        prompt = self.prompts.prompt(number)
        requests = group_requests(self.config, number, prompt, self.rewards.views)
        try:
            made = await asyncio.gather(*(self._generate(number, request) for request in requests))
        except DataFailure as failure:
            self._drop(number, failure)
            return
        self._unscored.put_nowait((number, prompt, [rollout for part in made for rollout in part]))

    async def _generate(self, number: int, request: RolloutRequest) -> list[Rollout]:
        """Rollouts of one request. Its span is the actor's work, without the wait for a free actor."""
        made = await self.rollouts.generate(request)
        self._progress()
        work_s = sum(rollout.generate_s + rollout.decode_s for rollout in made)
        first = made[0]
        detail = {"group": number, "version": first.policy_version.step}
        self._timeline.span("rollout", first.actor, max(0.0, self._timeline.now() - work_s), **detail)
        return made

    async def _score_loop(self) -> None:
        """Produces: ready groups. Waits for: rollouts. Unblocked by: the rollout loop.
        Bounded by: the same slots, since a group keeps its slot while it is scored."""
        while True:
            number, prompt, rollouts = await self._unscored.get()
            self._background.spawn(self._score_group(number, prompt, rollouts))

    async def _score_group(self, number: int, prompt: str, rollouts: list[Rollout]) -> None:
        began = self._timeline.now()
        try:
            scores = await self.rewards.score(rollouts)
        except DataFailure as failure:
            self._drop(number, failure)
            return
        except PayloadsLost as failure:
            self._redo([number], failure)
            return
        self._timeline.span("score", "reward servers", began, group=number)
        latents_only = tuple(replace(rollout, views=()) for rollout in rollouts)
        self.buffer.ready(RolloutGroup(rollouts[0].group_id, number, prompt, latents_only, tuple(scores)))
        self._consecutive_drops = 0
        self._progress()

    async def _train_loop(self) -> None:
        """Produces: policy versions. Waits for: num_groups ready groups. Unblocked by: the score loop.
        Bounded by: num_steps. Ends early, after a save, when `stop` is set."""
        self.observer.phase("train", self.config.num_steps)
        self.observer.advance(self.buffer.version.step)
        await self._make_up_for_evaluations()
        while True:
            began = self._timeline.now()
            groups = await self._next_groups()
            if groups is None:
                break
            if await self._train_step(groups, began=began):
                await self._between_steps()
            if self.milestones.health.stopped_by is not None:
                self.stop.set()
        if self._background.failure is None:  # or the save is whoever's who looks after the failure
            await self._save()
        await self.milestones.finish_evaluation()

    async def _between_steps(self) -> None:
        """Checkpoint and evaluation in the middle of a run; the last step has its own."""
        step = self.buffer.version.step
        if step == self.config.num_steps or self.stop.is_set():
            return
        if self.milestones.wants_evaluation(step):
            assert self.channel.newest is not None
            await self.milestones.begin_evaluation(self.channel.newest)
        if self.milestones.wants_save(step):
            await self._save()

    async def _make_up_for_evaluations(self) -> None:
        """Begin the evaluation of the checkpoint's policy if it was under way when the run ended."""
        step, milestones = self.buffer.version.step, self.milestones
        if missed := milestones.missed(step):
            self.observer.note(f"evaluations of steps {missed} were not finished; their policies are gone")
        if milestones.wants_evaluation(step) and not milestones.is_evaluated(step):
            assert self.channel.newest is not None
            await milestones.begin_evaluation(self.channel.newest)

    async def _next_groups(self) -> list[RolloutGroup] | None:
        """The groups of the next step, or None when there is none or the run was asked to stop."""
        while self.buffer.version.step < self.config.num_steps and not self.stop.is_set():
            if (ready := self._stream.next(self.buffer)) is not None:
                await self._accumulate(ready)
            elif (groups := self.buffer.cut()) is not None:
                return groups
            else:
                await self._background.moved()
        return None

    async def _accumulate(self, group: RolloutGroup) -> None:
        try:
            await self._stream.accumulate(group, self.buffer.version.step)
        except PayloadsLost as failure:
            self._redo([group.number], failure)
        self._progress()

    async def _train_step(self, groups: list[RolloutGroup], *, began: float) -> bool:
        """One step on `groups`, published; False if some of them have to be rolled out again first."""
        accumulated = self._stream.take()
        made = self.batches.make(groups, self.buffer.version.step, accumulated=accumulated.group_ids)
        train_start = self._timeline.now()
        result = await self._trained(made.batch, groups)
        if result is None:
            return False
        self.batches.commit()
        publish_start = self._timeline.now()

        def book() -> None:
            ages = [self.buffer.age(r.policy_version) for group in groups for r in group.rollouts]
            self.buffer.trained(groups, result.version)
            now = self._timeline.now()
            metrics = step_metrics(groups, made.totals, ages, result) | made.metrics
            metrics |= {
                "groups/dropped": float(self.buffer.num_dropped),
                "groups/redone": float(self.buffer.redone.total()),
                "seconds/wait": train_start - began - accumulated.seconds,
                "seconds/publish": now - publish_start,
                "rollouts_per_s": made.batch.num_samples / (now - began),
            }
            self.observer.step(metrics | self.milestones.health.after_step(metrics))
            self.observer.advance()

        self._book = book
        self._timeline.span("train", "learner", train_start, step=result.version.step)
        await self.channel.publish()
        if result.version.step == 1:  # the first version whose adapters are not zero
            await self.channel.prove()
        self._timeline.span("publish", "learner", publish_start, step=result.version.step)
        self._book_step()
        self._progress()
        return True

    def _book_step(self) -> None:
        """Free the slots of the newest trained step and tell its numbers, if that was not done."""
        book, self._book = self._book, None
        if book is not None:
            book()

    async def _trained(self, batch: TrainBatch, groups: list[RolloutGroup]) -> StepResult | None:
        """The learner's answer; None when latents are lost, with their groups on the way again."""
        try:
            result = await self.learner.train(batch)
        except PayloadsLost as failure:
            whose = {rollout_id.rpartition("/")[0] for rollout_id in failure.rollout_ids}
            numbers = [group.number for group in groups if group.group_id in whose]
            if not numbers:
                raise
            self.buffer.give_back()
            self._redo(numbers, failure)
            return None
        self._progress()
        return result

    async def _save(self) -> None:
        state = self.buffer.state() | self.batches.state() | self.milestones.health.state()
        await self.milestones.save(self.buffer.version.step, state)

    async def _save_after_failure(self) -> str | None:
        """Save the newest trained step, published or not; None if that was done before."""
        self._book_step()
        step = self.buffer.version.step
        if step == self.milestones.saved_step:
            return None
        await self._save()
        return f"checkpoint-{step}"

    def _drop(self, number: int, failure: DataFailure) -> None:
        self._consecutive_drops += 1
        if self._consecutive_drops >= MAX_CONSECUTIVE_DROPS:
            raise failure
        self.buffer.drop(number, type(failure).__name__)
        self._progress()

    def _redo(self, numbers: Collection[int], failure: PayloadsLost) -> None:
        """Roll groups out again with their numbers, and so their seeds. Raises what lost them too often."""
        for number in numbers:
            if self.buffer.redone[number] == MAX_REDOS:
                raise InfraFailure(f"group {number} was lost {MAX_REDOS + 1} times: {failure}") from failure
            log.warning("group %d is rolled out again: %s", number, failure)
            self.buffer.lost(number)
            self._background.spawn(self._roll_out_group(number))
        self._progress()

    async def _wake_on_stop(self) -> None:
        await self.stop.wait()
        self._background.wake()

    def _progress(self) -> None:
        self._watchdog.moved()
        self._background.wake()
