"""Trains the tiny open_clip model that judges whether a frame shows what its caption says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from astrolabe_ray.data.sprites.captions import ATTRIBUTES, SpriteCaption, heldout_captions
from astrolabe_ray.data.sprites.clips import random_captions, render_clips
from astrolabe_ray.data.sprites.render import SIZE
from astrolabe_ray.data.sprites.tokenizer import TEXT_LEN, make_tokenizer
from astrolabe_ray.data.sprites.training import Trainer

NUM_CLIPS = 1500
NUM_STEPS = 1500
BATCH = 128
STILL = ("size", "colour", "shape", "background")
"""Attributes that a single frame shows."""


def clip_config(vocab_size: int) -> dict[str, Any]:
    """Keyword arguments of `open_clip.CLIP`: 32 x 32 pixels in patches of 4; the words of captions."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE, "patch_size": 4, "width": 64, "layers": 3, "head_width": 32},
        "text_cfg": {
            "context_length": TEXT_LEN,
            "vocab_size": vocab_size,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
    }


def train_clip(seed: int, out: Path) -> dict[str, float]:
    """Write `out/clip`; returns how often the right value of an attribute beats the others, held-out.

    Contrastive over captions and frames; pairs whose still attributes agree all count as matches.
    Noise, blur and shifts keep the judge sensible on frames that a generator drew.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = clip_config(len(tokenizer))
    model = open_clip.CLIP(**config)
    captions = random_captions(NUM_CLIPS, seed)
    clips = torch.from_numpy(render_clips(captions, seed))
    tokens = tokenizer([str(c) for c in captions], padding="max_length", return_tensors="pt").input_ids
    kinds = list(dict.fromkeys(map(_still, captions)))
    still = torch.tensor([kinds.index(_still(caption)) for caption in captions])
    rng = random.Random(seed)

    def loss() -> Tensor:
        index = torch.randint(len(captions), (BATCH,))
        frames = clips[index, rng.randrange(clips.shape[1])]
        image = F.normalize(model.encode_image(_distorted(frames.float() / 127.5 - 1)), dim=-1)
        text = F.normalize(model.encode_text(tokens[index]), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        match = (still[index, None] == still[None, index]).float()
        target = match / match.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    Trainer("clip", [model], lr=1e-3, ema_decay=0.99).run(loss, num_steps=NUM_STEPS)
    folder = out / "clip"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return _accuracy(model.eval(), tokenizer)


def _still(caption: SpriteCaption) -> tuple[str, ...]:
    """What a single frame shows of a caption."""
    return tuple(getattr(caption, name) for name in STILL)


def _distorted(frames_BCHW: Tensor) -> Tensor:
    """Random shift by up to 2 pixels, half of the frames blurred, a little noise."""
    shift = torch.randint(-2, 3, (2,)).tolist()
    frames = torch.roll(frames_BCHW, shift, dims=(2, 3))
    blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    frames = torch.where(torch.rand(len(frames), 1, 1, 1) < 0.5, frames, blurred)
    return frames + 0.05 * torch.randn_like(frames)


@torch.no_grad()
def _accuracy(model: open_clip.CLIP, tokenizer: Any) -> dict[str, float]:
    """Share of held-out frames for which the right caption beats those that differ in one attribute."""
    captions = heldout_captions()[:100]
    frames = torch.from_numpy(render_clips(captions, 10_000_000))[:, 16].float() / 127.5 - 1
    image = F.normalize(model.encode_image(frames), dim=-1)
    accuracy = {}
    for name in STILL:
        right = 0
        for feature, caption in zip(image, captions, strict=True):
            texts = [str(SpriteCaption(**(vars(caption) | {name: value}))) for value in ATTRIBUTES[name]]
            tokens = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
            best = (F.normalize(model.encode_text(tokens), dim=-1) @ feature).argmax()
            right += ATTRIBUTES[name][int(best)] == getattr(caption, name)
        accuracy[f"heldout_{name}_accuracy"] = right / len(captions)
    return accuracy
