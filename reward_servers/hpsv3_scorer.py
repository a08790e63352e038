"""HPSv3: how much people would like each frame, as mean and spread of a rating; the best frames count.

Frames are judged one by one by a Qwen2-VL-7B, so any number of videos can share a forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from astrolabe_ray.config.reward_files import (
    CLOSING,
    HPSV3_BASE,
    HPSV3_TEXT,
    HPSV3_WEIGHTS,
    INSTRUCTION,
    PublishedText,
)
from astrolabe_ray.models.published_texts import filled, read_texts
from astrolabe_ray.models.weight_files import read_safetensors
from reward_servers.compiled import compile_if_asked
from reward_servers.forwards import Forwards
from reward_servers.frame_pictures import PAIR, fit_pixels, grid_of, normalised, num_tokens, patches, resized
from reward_servers.qwen_reward import RewardTokenizer, load_network, read_config, width_of
from reward_servers.scorers import ScorerSetup

NUM_PIXELS = 256 * 28 * 28
"""Of a frame as the model sees it: 256 tokens."""
REWARD_TOKEN = "<|Reward|>"
BEST = 0.3
"""Share of the frames whose mean is the video's score."""


class HPSv3Scorer:
    """`video_hpsv3_local` is the mean of the highest 30 % of the frames' mu, `video_hpsv3_mean` that of all,
    `video_hpsv3_sigma` the mean of the frames' sigma."""

    def __init__(
        self,
        setup: ScorerSetup,
        *,
        texts: tuple[PublishedText, PublishedText] = (INSTRUCTION, CLOSING),
        num_pixels: int = NUM_PIXELS,
    ) -> None:
        """Raises ConfigError for files that are absent, damaged or of another model."""
        folder = setup.folder
        self._num_pixels = num_pixels
        self._device, self._forwards = setup.device, Forwards(setup.frames_per_forward)
        self._instruction, self._closing = read_texts(folder / HPSV3_TEXT, texts)
        self._tokenizer = RewardTokenizer(folder / HPSV3_BASE, [REWARD_TOKEN])
        config = read_config(folder / HPSV3_BASE, len(self._tokenizer))
        weights = folder / HPSV3_WEIGHTS
        head = rank_head(width_of(config))
        self._network = load_network(config, head, read_safetensors(weights), weights, setup.device)
        compile_if_asked(self._network.backbone.language_model, setup)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Numbers float32 [B]. Raises DataFailure for a prompt with the model's own marks."""
        for prompt in prompts:
            self._tokenizer.refuse_special(prompt)
        num_frames = videos.shape[1]
        frames = torch.from_numpy(videos).flatten(0, 1)
        captions = [prompt for prompt in prompts for _ in range(num_frames)]
        rated = self._forwards.over(len(frames), lambda part: self._rate(frames[part], captions[part]))
        ratings = rated.unflatten(0, videos.shape[:2]).cpu()
        mu, sigma = ratings[..., 0], ratings[..., 1]
        best = mu.topk(max(1, int(BEST * num_frames)), dim=1).values
        return {
            "video_hpsv3_local": best.mean(dim=1).numpy(),
            "video_hpsv3_mean": mu.mean(dim=1).numpy(),
            "video_hpsv3_sigma": sigma.mean(dim=1).numpy(),
        }

    def _rate(self, frames_NCHW: Tensor, captions: Sequence[str]) -> Tensor:
        """mu and sigma [N, 2], float32, of single frames."""
        _, _, height, width = frames_NCHW.shape
        height, width = fit_pixels(height, width, self._num_pixels)
        pictures = normalised(resized(frames_NCHW.to(self._device).float(), height, width))
        pairs = pictures[:, None, None].expand(-1, 1, PAIR, -1, -1, -1)  # a still picture, twice
        grid = grid_of(1, height, width)
        texts = [filled(self._instruction, caption) + self._closing for caption in captions]
        ids = self._tokenizer.batch(texts, num_tokens(grid), "image")
        grids = torch.tensor([grid] * len(texts), device=self._device)
        read = self._network(
            ids.to(self._device),
            patches(pairs),
            grids,
            self._tokenizer.read,
            "image",
        )
        return read[:, 0]


def rank_head(width: int) -> nn.Module:
    """mu and sigma of what the model holds at the reward token."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )
