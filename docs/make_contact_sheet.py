"""Draws docs/images/sprites_contact_sheet.png: held-out prompts, as the embedded model generates them.

`python docs/make_contact_sheet.py --num-prompts 6`; seconds on a CPU core. Above each generated video
stands the clip that the sprite world draws for its caption.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from actors.decoder import VideoDecoder
from actors.rollout_actor import PIXELS_PER_LATENT
from actors.sampler import Sampler
from astrolabe_ray.algorithms.flow_matching import warped_timesteps
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.data.group_sampler import rollout_seed
from astrolabe_ray.data.sprites.captions import SpriteCaption, heldout_captions
from astrolabe_ray.data.sprites.contact_sheet import contact_sheet, write_png
from astrolabe_ray.data.sprites.render import render
from astrolabe_ray.models.registry import files_of, load_transformer
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.context import ContextRule

PICTURE = Path(__file__).parent / "images" / "sprites_contact_sheet.png"


def sampled_videos(model: ModelConfig, prompts: Sequence[str], seed: int) -> np.ndarray:
    """One video per prompt, uint8 [N, F, 3, H, W]: what a rollout actor makes before any training."""
    files = files_of(model)
    transformer = load_transformer(files, torch.float32, "cpu")
    vae = VideoVAE.load(files.vae, "cpu", torch.float32)
    text_len = transformer.architecture.text_len
    encoder = TextEncoder.load(files.text_encoder, files.tokenizer, text_len, "cpu", torch.float32)
    rule = ContextRule(model.chunk_frames, model.window_frames, model.sink_frames, model.rope)
    timesteps = warped_timesteps(model.denoising_steps, model.timestep_shift)
    sampler = Sampler(transformer, rule, timesteps, model.context_timestep)
    decoder = VideoDecoder(
        vae,
        batch=len(prompts),
        num_latent_frames=model.num_latent_frames,
        height=model.height,
        width=model.width,
    )
    chunks = sampler.sample(
        transformer.encode_text(encoder.encode(prompts)),
        [rollout_seed(seed, 0, number, 0) for number in range(len(prompts))],
        model.num_latent_frames,
        model.height // PIXELS_PER_LATENT,
        model.width // PIXELS_PER_LATENT,
    )
    for chunk_BTCHW in chunks:
        decoder.add(chunk_BTCHW)
    return decoder.videos()


def sheet(captions: Sequence[SpriteCaption], generated: np.ndarray, seed: int) -> np.ndarray:
    """Picture uint8 [H, W, 3] with two rows for each caption: drawn by the sprite world, then generated."""
    videos, titles = [], []
    for number, (caption, video) in enumerate(zip(captions, generated, strict=True)):
        videos += [render(caption, seed + number), video]
        titles += [f"drawn: {caption}", "generated"]
    return contact_sheet(videos, titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=ModelConfig().path, help="model directory or builtin:sprites")
    parser.add_argument("--num-prompts", type=int, default=8, help="first so many held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    captions = heldout_captions()[: options.num_prompts]
    model = ModelConfig(path=options.model)
    generated = sampled_videos(model, [str(caption) for caption in captions], options.seed)
    write_png(sheet(captions, generated, options.seed), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
