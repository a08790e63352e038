"""Scores of video files for the command line: by a pool of rewards, or through the HTTP door."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from astrolabe_ray.errors import DataFailure
from astrolabe_ray.roles import RewardPool
from astrolabe_ray.video_scoring import Keep, score_video
from reward_servers.client import ScoringClient
from reward_servers.mp4_frames import read_mp4
from reward_servers.uploads import UploadLimits, kind_of, read_npy

OWN_FILES = UploadLimits(max_frames=100_000, max_pixels=8192 * 8192, max_video_bytes=64 << 30)
"""What somebody's own files may be: as large as their machine takes."""


def read_video(file: Path) -> np.ndarray:
    """Frames uint8 [F, 3, H, W] of an mp4 or npy file. Raises DataFailure for one that can't be read."""
    try:
        content = file.read_bytes()
        read = read_mp4 if kind_of(content) == "mp4" else read_npy
        return read(content, OWN_FILES)
    except OSError as reason:
        raise DataFailure(f"it can't be read: {reason.strerror}") from None


class PoolScorer:
    """Fulfils `VideoScorer`: one video at a time, in an event loop of its own."""

    def __init__(self, pool: RewardPool, keep: Keep) -> None:
        """Raises ConfigError and InfraFailure as the pool's start does."""
        self._pool, self._keep, self._loop = pool, keep, asyncio.new_event_loop()
        self._loop.run_until_complete(pool.start())

    def score(self, video: Path, prompt: str) -> dict[str, float]:
        return self._loop.run_until_complete(score_video(self._pool, read_video(video), prompt, self._keep))

    def close(self) -> None:
        self._loop.run_until_complete(self._pool.stop())
        self._loop.close()


class DoorScorer:
    """Fulfils `VideoScorer` from afar; a file travels as it is."""

    def __init__(self, url: str, token: str, rewards: Sequence[str]) -> None:
        """`rewards`: keys; none: all that the door serves."""
        self._client, self._rewards = ScoringClient(url, token), rewards

    def score(self, video: Path, prompt: str) -> dict[str, float]:
        return self._client.score(video, prompt, self._rewards).scores

    def close(self) -> None:
        self._client.close()
