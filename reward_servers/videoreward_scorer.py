"""VideoReward (VideoAlign): visual quality, motion quality and text alignment of ten frames in one forward.

A Qwen2-VL-2B with a LoRA, folded in when it is loaded, and a linear head read at three special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from astrolabe_ray.config.reward_files import (
    DETAILED_PROMPT,
    VIDEOREWARD,
    VIDEOREWARD_BASE,
    VIDEOREWARD_TEXT,
    PublishedText,
)
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.models.published_texts import filled, read_texts
from reward_servers.compiled import compile_if_asked
from reward_servers.forwards import Forwards
from reward_servers.frame_pictures import PAIR, fit_pixels, grid_of, normalised, num_tokens, patches, resized
from reward_servers.qwen_reward import RewardTokenizer, load_network, read_config, width_of
from reward_servers.scorers import ScorerSetup
from reward_servers.videoreward_weights import newest_checkpoint, read_checkpoint

NUM_PIXELS = 256 * 28 * 28
"""Of a frame as the model sees it: 256 tokens."""
SIDES = ("vq", "mq", "ta")
READ_TOKENS = tuple(f"<|{side.upper()}_reward|>" for side in SIDES)


@dataclass(frozen=True)
class Released:
    """What the released model_config.json says that is needed here."""

    lora_alpha: float
    mean: tuple[float, float, float]  # of the raw numbers, in the order of SIDES
    std: tuple[float, float, float]


class VideoRewardScorer:
    """`vq`, `mq` and `ta` with mean 0 and std 1 over the publisher's videos, and `overall`, their mean."""

    def __init__(
        self, setup: ScorerSetup, *, text: PublishedText = DETAILED_PROMPT, num_pixels: int = NUM_PIXELS
    ) -> None:
        """Raises ConfigError for files that are absent, damaged or of another model."""
        folder = setup.folder
        self._device, self._num_pixels = setup.device, num_pixels
        self._forwards = Forwards()
        (self._text,) = read_texts(folder / VIDEOREWARD_TEXT, (text,))
        released = read_released(folder / VIDEOREWARD / "model_config.json")
        self._tokenizer = RewardTokenizer(folder / VIDEOREWARD_BASE, READ_TOKENS)
        config = read_config(folder / VIDEOREWARD_BASE, len(self._tokenizer))
        weights, base = newest_checkpoint(folder / VIDEOREWARD), folder / VIDEOREWARD_BASE
        tensors = read_checkpoint(weights, released.lora_alpha, base, len(self._tokenizer))
        head = side_head(width_of(config), tensors, weights)
        self._network = load_network(config, head, tensors, weights, setup.device)
        compile_if_asked(self._network.backbone.language_model, setup)
        self._mean, self._std = torch.tensor(released.mean), torch.tensor(released.std)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Numbers float32 [B].

        Raises DataFailure for a prompt with the model's own marks and for an odd number of frames.
        """
        for prompt in prompts:
            self._tokenizer.refuse_special(prompt)
        if videos.shape[1] % PAIR:
            raise DataFailure(f"videoreward judges frames in pairs, the videos have {videos.shape[1]}")
        frames = torch.from_numpy(videos)
        read = self._forwards.over(len(videos), lambda part: self._read(frames[part], prompts[part]))
        raw_BKO = read.cpu()
        is_shared = raw_BKO.shape[-1] == 1
        raw = raw_BKO[..., 0] if is_shared else raw_BKO.diagonal(dim1=1, dim2=2)
        scores = (raw - self._mean) / self._std
        numbers = {side: scores[:, i].numpy() for i, side in enumerate(SIDES)}
        return numbers | {"overall": scores.mean(dim=1).numpy()}

    def _read(self, videos_BFCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Raw numbers [B, 3, 1 or 3], float32."""
        batch, num_frames, _, height, width = videos_BFCHW.shape
        height, width = fit_pixels(height, width, self._num_pixels)
        frames = resized(videos_BFCHW.flatten(0, 1).to(self._device).float(), height, width)
        pairs = normalised(frames).reshape(batch, num_frames // PAIR, PAIR, 3, height, width)
        grid = grid_of(num_frames // PAIR, height, width)
        texts = [filled(self._text, prompt) for prompt in prompts]
        ids = self._tokenizer.batch(texts, num_tokens(grid), "video")
        grids = torch.tensor([grid] * batch, device=self._device)
        return self._network(ids.to(self._device), patches(pairs), grids, self._tokenizer.read, "video")


def read_released(path: Path) -> Released:
    """Raises ConfigError naming what the file does not say."""
    try:
        values = json.loads(path.read_text())
        constants = values["inference_config"]
        mean, std = (
            tuple(float(constants[f"{side.upper()}_{what}"]) for side in SIDES) for what in ("mean", "std")
        )
        return Released(float(values["peft_lora_config"]["lora_alpha"]), mean, std)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise ConfigError(
            f"{path} can't be used: {reason!r}; needed are peft_lora_config.lora_alpha and, in "
            "inference_config, VQ_mean, VQ_std and the same for MQ and TA"
        ) from None


def side_head(width: int, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """One number, read at each token, or one for each of them. Raises ConfigError for anything else."""
    found = tensors.get("head.weight")
    sides = (1, len(SIDES))
    if found is None or found.shape[0] not in sides:
        shape = None if found is None else tuple(found.shape)
        raise ConfigError(f"{path}: rm_head.weight is {shape}; it must have {sides[0]} or {sides[1]} rows")
    return nn.Linear(width, found.shape[0], bias=False)
