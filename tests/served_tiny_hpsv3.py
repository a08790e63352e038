"""HPSv3 at a tiny size as a server can load it: with the texts of its tiny files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from astrolabe_ray.config.scorer_cards import Reading, ScorerCard
from reward_servers.hpsv3_scorer import HPSv3Scorer
from reward_servers.scorers import ScorerSetup
from tests.tiny_qwen import TEXTS
from tests.tiny_rewards import BUDGET

KEY = "tests.served_tiny_hpsv3:Served"


class Served:
    """`video_hpsv3_local` and its neighbours, from the files in the option `files`."""

    card = ScorerCard("served", {"video_hpsv3_local": Reading()}, "Apache-2.0", options={"files": ""})

    def __init__(self, setup: ScorerSetup) -> None:
        tiny = ScorerSetup(Path(setup.options["files"]), setup.device, setup.frames_per_forward)
        self._scorer = HPSv3Scorer(tiny, texts=TEXTS, num_pixels=BUDGET)

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        return self._scorer.score(videos, prompts)
