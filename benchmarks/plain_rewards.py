"""Scoring written plainly, as trainers do that hold their rewards in their own process: video after video,
each from floats over Pillow's pictures, four frames in a forward, its texts encoded every time.
"""

from __future__ import annotations

import json
import time

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from astrolabe_ray.data.sprites.captions import ATTRIBUTES, SpriteCaption, parse
from astrolabe_ray.data.sprites.train_clip import STILL
from astrolabe_ray.models.files import BUILTIN

FRAMES_PER_FORWARD = 4


class PlainTinyClip:
    """The same score as `tiny_clip`: how probable the caption is among those that differ in one attribute."""

    def __init__(self) -> None:
        folder = BUILTIN["builtin:sprites"]
        config = json.loads((folder / "clip" / "config.json").read_text())
        self._size: int = config["vision_cfg"]["image_size"]
        self._model = open_clip.CLIP(**config)
        self._model.load_state_dict(load_file(folder / "clip" / "model.safetensors"))
        self._model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)

    @torch.no_grad()
    def score(self, video: Tensor, prompt: str) -> float:
        """Of a video float [F, 3, H, W] in 0..1."""
        pictures = [self._picture(frame) for frame in video]
        features = [
            F.normalize(self._model.encode_image(torch.stack(pictures[i : i + FRAMES_PER_FORWARD])), dim=-1)
            for i in range(0, len(pictures), FRAMES_PER_FORWARD)
        ]
        images_FD, caption = torch.cat(features), parse(prompt)
        chances = [self._chance(images_FD, caption, attribute) for attribute in STILL]
        return float(np.mean(chances))

    def _picture(self, frame: Tensor) -> Tensor:
        """Pixels -1..1 of a frame in 0..1."""
        levels = (frame * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        size = (self._size, self._size)
        picture = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC))
        return torch.from_numpy(picture / np.float32(127.5) - 1).permute(2, 0, 1)

    def _chance(self, images_FD: Tensor, caption: SpriteCaption, attribute: str) -> float:
        values = ATTRIBUTES[attribute]
        texts = [str(SpriteCaption(**(vars(caption) | {attribute: value}))) for value in values]
        tokens = self._tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        texts_VD = F.normalize(self._model.encode_text(tokens), dim=-1)
        logits = self._model.logit_scale.exp().clamp(max=100) * images_FD @ texts_VD.T
        return float(logits.softmax(dim=-1)[:, values.index(getattr(caption, attribute))].mean())


class PlainDevice:
    """A forward for every video on the device that `benchmarks.simulated_device` simulates."""

    def __init__(self, seconds_per_forward: float, seconds_per_video: float) -> None:
        self._seconds = seconds_per_forward + seconds_per_video

    def score(self, video: Tensor, prompt: str) -> float:
        time.sleep(self._seconds)
        return float((video[0, 0, 0, 0] * 255).round())
