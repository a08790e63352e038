"""What the door asks behind it: scores of a video, and curves of scores along it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from astrolabe_ray.config.schema import RewardConfig
from astrolabe_ray.config.scorer_cards import scorer_name
from astrolabe_ray.errors import DataFailure, InfraFailure
from astrolabe_ray.roles import RewardPool
from astrolabe_ray.video_scoring import Keep, rollouts_of
from reward_servers.messages import Point, ServedReward
from reward_servers.scorers import card_of
from reward_servers.uploads import Refused

MIN_WINDOW_FRAMES = 9
"""Of a window of a scorer that looks at motion: three latent frames of Wan."""

PoolOf = Callable[[Sequence[RewardConfig]], RewardPool]
"""A pool of the rewards of one scorer. Called once for each scorer."""


class Desk:
    """Answers for a fixed set of rewards. Bounded by whoever calls: it keeps no queue."""

    def __init__(self, rewards: Sequence[RewardConfig], pool_of: PoolOf, keep: Keep) -> None:
        self._rewards = {reward.key: reward for reward in rewards}
        self._pool_of, self._keep = pool_of, keep
        self._members: dict[str, list[RewardConfig]] = {}
        for reward in rewards:
            self._members.setdefault(scorer_name(reward.key), []).append(reward)
        self._pools: dict[str, RewardPool] = {}  # by scorer; started, so their servers stay
        self._starting = asyncio.Lock()

    async def open(self) -> None:
        """Reach every scorer, so that its servers stay as long as this desk; one that is not there is
        looked for again when somebody asks for it. Raises ConfigError."""
        for scorer in self._members:
            with contextlib.suppress(InfraFailure):
                await self._pool(scorer)

    def served(self) -> list[ServedReward]:
        return [_served(key) for key in self._rewards]

    def keys(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """`wanted` in the order of this desk; all for none. Raises Refused for a key that is not served."""
        for key in wanted:
            if key not in self._rewards:
                raise Refused("unknown_reward", f"'{key}' is not served; there is {', '.join(self._rewards)}")
        return tuple(key for key in self._rewards if not wanted or key in wanted)

    async def score(self, video: np.ndarray, prompt: str, keys: Sequence[str]) -> dict[str, float]:
        """Of `video` uint8 [F, 3, H, W]. Raises DataFailure for what a scorer can't judge, InfraFailure."""
        pools = [await self._pool(scorer) for scorer in dict.fromkeys(map(scorer_name, keys))]
        rollouts = await asyncio.to_thread(rollouts_of, video, prompt, pools, self._keep)
        answers = await asyncio.gather(
            *(pool.score([rollout]) for pool, rollout in zip(pools, rollouts, strict=True))
        )
        found = {key: value for (scores,) in answers for key, value in scores.values.items()}
        return {key: found[key] for key in keys}

    async def curves(
        self, video: np.ndarray, prompt: str, keys: Sequence[str], num_points: int
    ) -> dict[str, list[Point]]:
        """Each reward along the video, at `num_points` places at most. Raises as `score` does.

        Scorers that judge frame by frame see single frames, others windows as long as the distance of two
        points and not shorter than MIN_WINDOW_FRAMES. Windows of a size share requests' batches.
        """
        alike: dict[tuple[tuple[int, int], ...], list[str]] = {}
        for key in keys:
            spans = windows(len(video), num_points, 1 if _served(key).frame_by_frame else MIN_WINDOW_FRAMES)
            alike.setdefault(tuple(spans), []).append(key)
        found: dict[str, list[Point]] = {key: [] for key in keys}
        for spans, members in alike.items():
            answers = await asyncio.gather(*(self.score(video[a:b], prompt, members) for a, b in spans))
            for (first, end), answer in zip(spans, answers, strict=True):
                for key in members:
                    found[key].append(Point(first, end, answer[key]))
        return found

    async def _pool(self, scorer: str) -> RewardPool:
        if scorer not in self._pools:
            async with self._starting:
                if scorer not in self._pools:  # callers at the same time share one
                    pool = self._pool_of(self._members[scorer])
                    await pool.start()
                    self._pools[scorer] = pool
        return self._pools[scorer]


def windows(num_frames: int, num_points: int, min_frames: int) -> list[tuple[int, int]]:
    """Equal spans (first, end) of frames, evenly spaced from the first frame to the last.

    Example: `windows(33, 3, 9)` is `[(0, 11), (11, 22), (22, 33)]`; with `min_frames` 1: single frames.
    """
    length = 1 if min_frames == 1 else min(num_frames, max(min_frames, num_frames // num_points))
    count = min(num_points, num_frames - length + 1)
    starts = np.linspace(0, num_frames - length, count).round().astype(int).tolist()
    return [(start, start + length) for start in starts]


def check_prompt(prompt: str, max_chars: int) -> None:
    """Raises Refused for a prompt that says nothing, is endless or holds control characters."""
    if not prompt.strip():
        raise Refused("empty_prompt", "the prompt is empty; a score is of a video and its prompt")
    if len(prompt) > max_chars:
        raise Refused("bad_prompt", f"the prompt has {len(prompt)} characters; at most {max_chars} are taken")
    if any(ord(letter) < 32 and letter not in "\t\n\r" for letter in prompt):
        raise Refused("bad_prompt", "the prompt contains control characters")


def _served(key: str) -> ServedReward:
    card = card_of(key)
    frames = card.reading(key).frames
    return ServedReward(
        key,
        scorer_name(key),
        card.summary,
        card.licence,
        frames.num_frames,
        frames.height,
        frames.width,
        frames.grayscale,
        card.frame_by_frame,
    )


def reason_of(failure: DataFailure) -> Refused:
    """A scorer's own refusal as one of the door's: it saw the video and would not judge it."""
    return failure if isinstance(failure, Refused) else Refused("not_scored", str(failure))
