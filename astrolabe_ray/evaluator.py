"""Held-out prompts sampled with fixed seeds, so that two policies can be compared video by video.

An evaluation is of one published policy, whatever else the rollout actors sample with in the meantime.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from astrolabe_ray.batching import slices
from astrolabe_ray.config.plan import eval_prompts_in_flight
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.train_window import evaluation_frames
from astrolabe_ray.data.group_sampler import rollout_seed
from astrolabe_ray.errors import DataFailure, PayloadsLost, WeightMismatch
from astrolabe_ray.roles import Gallery, RewardPool, RolloutPool, RunObserver
from astrolabe_ray.step_metrics import total_reward
from astrolabe_ray.types import (
    Blob,
    EvalRecord,
    Evaluation,
    FrameSpec,
    PolicyVersion,
    PublishedPolicy,
    Rollout,
    RolloutRequest,
)

FULL_VIDEO = FrameSpec()
MAX_REDOS = 5
"""Times that one prompt is rolled out again because its frames were lost."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptResult:
    """Of the videos of one prompt."""

    records: list[EvalRecord]
    diversity: float
    looks: dict[str, float]


class Evaluator:
    """Evaluates published policies on the same prompts and seeds every time.

    Bounded by `eval_prompts_in_flight`: enough for all actors, and not all held-out videos in the object
    store at once.
    """

    def __init__(
        self,
        config: RunConfig,
        heldout_prompts: Sequence[str],
        *,
        rollouts: RolloutPool,
        rewards: RewardPool,
        gallery: Gallery,
        observer: RunObserver,
    ) -> None:
        self.config, self.prompts = config, list(heldout_prompts)
        self.rollouts, self.rewards, self.gallery, self.observer = rollouts, rewards, gallery, observer

    async def start(self) -> None:
        """Start what looks at videos; rollouts and rewards are started by whoever else uses them."""
        await self.gallery.start()

    async def evaluate(
        self,
        phase: str,
        policy: PublishedPolicy,
        *,
        on_progress: Callable[[], None] = lambda: None,
        is_beside_training: bool = False,
    ) -> Evaluation:
        """All prompts, a group each. The first video of the first prompts is kept to be shown. A prompt that
        cannot be sampled or scored is left out, and named.

        `on_progress` is called for each finished request and each finished prompt. Beside training it is
        the steps whose progress people see. Raises WeightMismatch for a video of any other policy, and
        DataFailure as soon as more than half of the prompts are left out.
        """
        if not is_beside_training:
            self.observer.phase(f"evaluate {phase}", len(self.prompts))
        room = asyncio.Semaphore(eval_prompts_in_flight(self.config))
        left_out: list[int] = []

        async def prompt(number: int) -> PromptResult | None:
            async with room:
                try:
                    result = await self._prompt(number, phase, policy, on_progress)
                except DataFailure as failure:
                    left_out.append(number)
                    self._leave_out(phase, left_out, failure)
                    result = None
            if not is_beside_training:
                self.observer.advance()
            on_progress()
            return result

        tasks = [asyncio.ensure_future(prompt(number)) for number in range(len(self.prompts))]
        try:
            results = [result for result in await asyncio.gather(*tasks) if result is not None]
        finally:  # after a failure the others would go on
            for task in tasks:
                task.cancel()
        return Evaluation(
            phase,
            policy.manifest.version,
            tuple(record for result in results for record in result.records),
            fmean(result.diversity for result in results),
            {name: fmean(result.looks[name] for result in results) for name in results[0].looks},
            tuple(sorted(left_out)),
        )

    def is_comparable(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation of an earlier part of the run is of the same prompts, seeds and reward."""
        weights = {reward.key: reward.weight for reward in self.config.rewards}
        expected = [
            (prompt, rollout_seed(self.config.evaluation.seed, 0, number, i))
            for number, prompt in enumerate(self.prompts)
            if number not in evaluation.left_out
            for i in range(self.config.evaluation.rollouts_per_prompt)
        ]
        records = evaluation.records
        return [(record.prompt, record.seed) for record in records] == expected and all(
            record.scores.keys() == weights.keys()
            and math.isclose(record.total, sum(weights[key] * record.scores[key] for key in weights))
            for record in records
        )

    def _leave_out(self, phase: str, left_out: Sequence[int], failure: DataFailure) -> None:
        """Name the last of `left_out`. Raises DataFailure once they are more than half."""
        prompt, total = self.prompts[left_out[-1]], len(self.prompts)
        self.observer.note(f"held-out prompt {prompt!r} is left out of evaluation {phase}: {failure}")
        if 2 * len(left_out) > total:
            raise DataFailure(
                f"evaluation {phase} had to leave out {len(left_out)} of {total} held-out prompts, more than "
                f"half. The last one, {prompt!r}: {failure}"
            ) from failure

    async def _prompt(
        self, number: int, phase: str, policy: PublishedPolicy, on_progress: Callable[[], None]
    ) -> PromptResult:
        """Records of one prompt and what its videos are like; made again when frames are lost."""
        for redo in range(MAX_REDOS + 1):
            try:
                return await self._try_prompt(number, phase, policy, on_progress)
            except PayloadsLost as failure:
                if redo == MAX_REDOS:
                    raise
                log.warning("held-out prompt %d is rolled out again: %s", number, failure)
        raise AssertionError("the last try returns or raises")

    async def _try_prompt(
        self, number: int, phase: str, policy: PublishedPolicy, on_progress: Callable[[], None]
    ) -> PromptResult:
        settings = self.config.evaluation
        views = self.rewards.views
        if FULL_VIDEO not in views:
            views = (*views, FULL_VIDEO)
        requests = [
            RolloutRequest(
                group_id=f"eval-{phase}-{number}",
                prompt=self.prompts[number],
                seeds=tuple(rollout_seed(settings.seed, 0, number, i) for i in part),
                indices=part,
                views=views,
                window=(0, evaluation_frames(self.config)),
            )
            for part in slices(settings.rollouts_per_prompt, self.config.rollout.batch_size)
        ]

        async def generate(request: RolloutRequest) -> list[Rollout]:
            made = await self.rollouts.generate(request, pinned=policy)
            _require_version(made, policy.manifest.version)
            on_progress()
            return made

        made = await asyncio.gather(*map(generate, requests))
        rollouts = [rollout for part in made for rollout in part]
        videos = [rollout.views[views.index(FULL_VIDEO)] for rollout in rollouts]
        scores, diversity, looks = await asyncio.gather(
            self.rewards.score(rollouts), self.gallery.diversity(videos), self.gallery.looks(videos)
        )
        shown = await self._shown_video(rollouts[0], videos[0], phase) if self._is_shown(number) else None
        weights = {reward.key: reward.weight for reward in self.config.rewards}
        records = [
            EvalRecord(
                prompt=rollout.prompt,
                seed=rollout.seed,
                index=rollout.index,
                scores=dict(score.values),
                total=total_reward(score, weights),
                video=shown if rollout is rollouts[0] else None,
            )
            for rollout, score in zip(rollouts, scores, strict=True)
        ]
        return PromptResult(records, diversity, looks)

    def _is_shown(self, number: int) -> bool:
        return number < self.config.evaluation.num_shown_videos

    async def _shown_video(self, rollout: Rollout, video: Blob, phase: str) -> bytes:
        """Encoded at once: the actor that made the video may be gone when the run ends."""
        comment = f"{rollout.prompt} | seed {rollout.seed} | policy {rollout.policy_version} | {phase}"
        return await self.gallery.encode(video, fps=self.config.model.fps, comment=comment)


def _require_version(made: Sequence[Rollout], wanted: PolicyVersion) -> None:
    others = {rollout.policy_version for rollout in made} - {wanted}
    if others:
        raise WeightMismatch(
            f"policy {wanted} is evaluated, but a held-out video was made by {min(others)}. The rollout pool "
            "must sample a request with the policy that is pinned to it."
        )
