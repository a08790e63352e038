"""Rewards on CLIP features of single frames: HPSv2.1, the aesthetic predictor, CLIP score.

Legend of axes: N pictures, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from astrolabe_ray.config.reward_files import AESTHETIC_HEAD, CLIP_L14, HPSV2_WEIGHTS
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.models.checkpoints import load_strict
from astrolabe_ray.models.weight_files import read_pickled, read_safetensors
from reward_servers.compiled import compile_if_asked
from reward_servers.forwards import Forwards
from reward_servers.frame_pictures import normalised, resized, resized_part
from reward_servers.scorers import ScorerSetup

BEST = 0.3
"""Share of the frames whose mean is a video's HPSv2.1 score."""


class ClipFeatures:
    """Image and text features of length 1 from an open_clip model, in float32."""

    def __init__(self, setup: ScorerSetup, tensors: Mapping[str, Tensor], source: Path) -> None:
        """Raises ConfigError for an unknown architecture and for weights that do not fit it."""
        name = setup.options["architecture"]
        config = open_clip.get_model_config(name)
        if config is None:
            raise ConfigError(f"open_clip has no architecture '{name}'; try options=architecture=ViT-L-14")
        self.size: int = config["vision_cfg"]["image_size"]
        self.width: int = config["embed_dim"]
        self._device, self._forwards = setup.device, Forwards(setup.frames_per_forward)
        self._tokenizer = SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
        self._model = open_clip.CLIP(**config)
        load_strict(self._model, tensors, source)
        self._model.to(setup.device, torch.float32).eval().requires_grad_(False)
        compile_if_asked(self._model.visual, setup)

    def of_videos(self, videos: np.ndarray, *, padded: bool) -> Tensor:
        """[B, F, D] of uint8 [B, F, 3, H, W]: whole pictures with black margins, or their middle squares."""
        frames = torch.from_numpy(videos).flatten(0, 1)
        prepare = self._padded if padded else self._cropped

        def encode(part: slice) -> Tensor:
            return self._model.encode_image(normalised(prepare(frames[part].to(self._device).float())))

        features = self._forwards.over(len(frames), encode)
        return F.normalize(features, dim=-1).unflatten(0, videos.shape[:2])

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """[B, D]; what is longer than the model's context is cut off, as CLIP does.

        Raises DataFailure for a text with one of the model's own marks.
        """
        for text in texts:
            self._refuse_marks(text)
        return F.normalize(self._model.encode_text(self._tokenizer(list(texts)).to(self._device)), dim=-1)

    def _refuse_marks(self, text: str) -> None:
        """One that ends a text does so wherever it stands. Upper case and `&lt;` are the mark, too."""
        marks = set(self._tokenizer.all_special_ids) & set(self._tokenizer.encode(text))
        if marks:
            found = ", ".join(self._tokenizer.decoder[mark] for mark in sorted(marks))
            raise DataFailure(
                f"the prompt '{text}' contains {found}, which CLIP reads as a mark and not as text; remove "
                "it from the prompt"
            )

    def _padded(self, levels_NCHW: Tensor) -> Tensor:
        """The longer side fills the square, black beside the shorter one."""
        height, width = (
            round(side * self.size / max(levels_NCHW.shape[2:])) for side in levels_NCHW.shape[2:]
        )
        down, right = self.size - height, self.size - width
        margins = (right // 2, right - right // 2, down // 2, down - down // 2)
        return F.pad(resized(levels_NCHW, height, width), margins)

    def _cropped(self, levels_NCHW: Tensor) -> Tensor:
        """The shorter side fills the square, the ends of the longer one are cut off.

        They are cut off before they are made, so that the shape of a picture does not decide on memory.
        """
        short = min(levels_NCHW.shape[2:])
        height, width = (int(side * self.size / short) for side in levels_NCHW.shape[2:])
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        columns = resized_part(levels_NCHW, 3, width, left, self.size)
        return resized_part(columns, 2, height, top, self.size)


class HPSv2Scorer:
    """`video_hpsv2_local`: cosine of text and frame, mean of the best 30 % of the frames."""

    def __init__(self, setup: ScorerSetup) -> None:
        path = setup.folder / HPSV2_WEIGHTS
        saved = read_pickled(path)
        if "state_dict" not in saved:
            raise ConfigError(f"{path} holds no 'state_dict'; fetch it again")
        self._clip = ClipFeatures(setup, saved["state_dict"], path)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]."""
        images, texts = self._clip.of_videos(videos, padded=True), self._clip.of_texts(prompts)
        cosines = torch.einsum("bfd,bd->bf", images, texts)
        best = cosines.topk(max(1, int(BEST * videos.shape[1])), dim=1).values
        return {"video_hpsv2_local": best.mean(dim=1).cpu().numpy()}


class ClipScorer:
    """`clip_score`: cosine of text and frame, mean over the frames; about 0.15 to 0.35."""

    def __init__(self, setup: ScorerSetup) -> None:
        path = setup.folder / CLIP_L14
        self._clip = ClipFeatures(setup, read_safetensors(path), path)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]."""
        images, texts = self._clip.of_videos(videos, padded=False), self._clip.of_texts(prompts)
        return {"clip_score": torch.einsum("bfd,bd->bf", images, texts).mean(dim=1).cpu().numpy()}


class AestheticScorer:
    """`aesthetic`: the LAION predictor's rating, about 1 to 10, mean over the frames."""

    def __init__(self, setup: ScorerSetup) -> None:
        path, head = setup.folder / CLIP_L14, setup.folder / AESTHETIC_HEAD
        self._clip = ClipFeatures(setup, read_safetensors(path), path)
        self._head = aesthetic_head(self._clip.width)
        load_strict(self._head, read_pickled(head), head)
        self._head.to(setup.device, torch.float32).eval().requires_grad_(False)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]; prompts are not looked at."""
        images = self._clip.of_videos(videos, padded=False)
        return {"aesthetic": self._head(images)[..., 0].mean(dim=1).cpu().numpy()}


class _Layers(nn.Module):
    """Gives the parameters the names that they were saved with."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def aesthetic_head(width: int) -> nn.Module:
    """Linear layers without anything between them but dropout."""
    return _Layers(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
