"""Text alignment of sprite videos, judged by the embedded open_clip model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from astrolabe_ray.data.sprites.captions import ATTRIBUTES, SpriteCaption, parse
from astrolabe_ray.data.sprites.train_clip import STILL
from astrolabe_ray.errors import DataFailure
from astrolabe_ray.models.files import BUILTIN
from reward_servers.compiled import compile_if_asked
from reward_servers.scorers import ScorerSetup


class TinyClipScorer:
    """Mean probability, in 0..1, that a frame shows the caption's size, colour, shape and background.

    For each of these attributes the caption competes with the captions that differ in it alone:
    a softmax over CLIP's logits. Averaged over the attributes and over four frames.
    """

    def __init__(self, setup: ScorerSetup, *, folder: Path = BUILTIN["builtin:sprites"]) -> None:
        """`folder`: the model directory that holds clip/ and tokenizer/; the embedded one by default."""
        config = json.loads((folder / "clip" / "config.json").read_text())
        self._model = open_clip.CLIP(**config)
        self._model.load_state_dict(load_file(folder / "clip" / "model.safetensors"))
        self._model.eval().requires_grad_(False)
        compile_if_asked(self._model.visual, setup)
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self._rivals = lru_cache(maxsize=4096)(self._rival_features)

    @torch.inference_mode()
    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B]. Raises DataFailure for a prompt that is no caption of the sprite world."""
        frames = torch.from_numpy(videos).flatten(0, 1).float() / 127.5 - 1
        images_BFD = F.normalize(self._model.encode_image(frames), dim=-1).unflatten(0, videos.shape[:2])
        scale = float(self._model.logit_scale.exp().clamp(max=100))
        scores = [
            np.mean([self._probability(image_FD, scale, rivals) for rivals in self._rivals(prompt)])
            for image_FD, prompt in zip(images_BFD, prompts, strict=True)
        ]
        return {"tiny_clip": np.array(scores, dtype=np.float32)}

    @staticmethod
    def _probability(image_FD: Tensor, scale: float, rivals: tuple[int, Tensor]) -> float:
        right, texts_VD = rivals
        return float((scale * image_FD @ texts_VD.T).softmax(dim=-1)[:, right].mean())

    def _rival_features(self, prompt: str) -> list[tuple[int, Tensor]]:
        """For each attribute: which of its values is right, and text features [values, D]."""
        try:
            caption = parse(prompt)
        except KeyError:
            raise DataFailure(
                f"tiny_clip cannot judge the prompt '{prompt}': it knows only captions of the sprite world, "
                "such as 'a small red circle moves left on a black background'."
            ) from None
        features = []
        for name in STILL:
            values = ATTRIBUTES[name]
            texts = [str(SpriteCaption(**(vars(caption) | {name: value}))) for value in values]
            tokens = self._tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
            features.append(
                (
                    values.index(getattr(caption, name)),
                    F.normalize(self._model.encode_text(tokens), dim=-1),
                )
            )
        return features
