"""Held-out prompts sampled with fixed seeds, so that two policies can be compared video by video."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import fmean

from astrolabe_ray.batching import slices
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.config.train_window import evaluation_frames
from astrolabe_ray.data.group_sampler import rollout_seed
from astrolabe_ray.roles import Gallery, RewardPool, RolloutPool, RunObserver
from astrolabe_ray.step_metrics import total_reward
from astrolabe_ray.types import (
    Blob,
    EvalRecord,
    Evaluation,
    FrameSpec,
    PolicyVersion,
    Rollout,
    RolloutRequest,
)

FULL_VIDEO = FrameSpec()


class Evaluator:
    """Evaluates whatever policy the rollout pool holds on the same prompts and seeds every time."""

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

    async def evaluate(self, phase: str, version: PolicyVersion) -> Evaluation:
        """All prompts, a group each. The first video of the first prompts is kept to be shown."""
        self.observer.phase(f"evaluate {phase}", len(self.prompts))
        results = await asyncio.gather(*(self._prompt(i, phase) for i in range(len(self.prompts))))
        records = tuple(record for group, _ in results for record in group)
        return Evaluation(phase, version, records, fmean(diversity for _, diversity in results))

    async def _prompt(self, number: int, phase: str) -> tuple[list[EvalRecord], float]:
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
        made = await asyncio.gather(*(self.rollouts.generate(request) for request in requests))
        rollouts = [rollout for part in made for rollout in part]
        videos = [rollout.views[views.index(FULL_VIDEO)] for rollout in rollouts]
        scores, diversity = await asyncio.gather(self.rewards.score(rollouts), self.gallery.diversity(videos))
        shown = await self._shown_video(rollouts[0], videos[0], phase) if self._is_shown(number) else None
        self.observer.advance()
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
        return records, diversity

    def _is_shown(self, number: int) -> bool:
        return number < self.config.evaluation.num_shown_videos

    async def _shown_video(self, rollout: Rollout, video: Blob, phase: str) -> bytes:
        """Encoded at once: the actor that made the video may be gone when the run ends."""
        comment = f"{rollout.prompt} | seed {rollout.seed} | policy {rollout.policy_version} | {phase}"
        return await self.gallery.encode(video, fps=self.config.model.fps, comment=comment)
