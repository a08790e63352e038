"""The weights that come with the repository: they load as any model does, and are good enough to train on."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.config.scorer_cards import TINY_FRAMES
from astrolabe_ray.data.frames import derive_view
from astrolabe_ray.data.sprites.captions import ATTRIBUTES, SpriteCaption, all_captions, heldout_captions
from astrolabe_ray.data.sprites.clips import render_clips
from astrolabe_ray.data.sprites.render import render
from astrolabe_ray.models.registry import BUILTIN, load_transformer, resolve
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from reward_servers.scorers import ScorerSetup
from reward_servers.tiny_clip_scorer import TinyClipScorer

# Floors of quality: what the shipped weights must reach on held-out captions.
VAE_PSNR_DB = 24.0  # mean over clips
VAE_WORST_PSNR_DB = 18.0  # of a single clip
TEXT_ACCURACY = 0.99  # of a linear probe, for each attribute
CLIP_ACCURACY = {"size": 0.95, "colour": 0.95, "shape": 0.75, "background": 0.95}
CLIP_SCORE = 0.85  # mean score of clips that show what their captions say
MAX_BYTES = 8 * 2**20

DRAWING_SEED = 20_000_000  # far from the seeds of the clips that the models were trained on
WEIGHTS = BUILTIN["builtin:sprites"]
MAKE_CONTACT_SHEET = Path(__file__).parents[2] / "docs" / "make_contact_sheet.py"


@cache
def text_encoder() -> TextEncoder:
    files = resolve("builtin:sprites")
    text_len = load_transformer(files, torch.float32, "cpu").architecture.text_len
    return TextEncoder.load(files.text_encoder, files.tokenizer, text_len, "cpu", torch.float32)


@cache
def scorer() -> TinyClipScorer:
    return TinyClipScorer(ScorerSetup())


def test_weights_are_data_and_small() -> None:
    """A pickle runs code on loading; large files make every clone slow."""
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert not any("auto_map" in path.read_text() for path in files if path.suffix == ".json")


def test_every_tensor_is_finite() -> None:
    """Half precision overflows above 65,504."""
    for file in WEIGHTS.rglob("*.safetensors"):
        bad = [name for name, tensor in load_file(file).items() if not tensor.float().isfinite().all()]
        assert bad == [], file


def test_the_model_card_is_complete_and_counts_the_parameters_that_there_are() -> None:
    """A card that describes earlier weights misleads."""
    card = (WEIGHTS / "README.md").read_text()
    assert "METRIC_" not in card
    for part in ("transformer", "vae", "text_encoder", "clip"):
        (file,) = (WEIGHTS / part).glob("*.safetensors")
        (row,) = (line for line in card.splitlines() if line.startswith(f"| `{part}/`"))
        assert f"| {sum(tensor.numel() for tensor in load_file(file).values()):,} |" in row


def test_the_parts_fit_each_other() -> None:
    """Parts that were trained at different times may disagree on a size."""
    files = resolve("builtin:sprites")
    architecture = load_transformer(files, torch.float32, "cpu").architecture
    clip = json.loads((WEIGHTS / "clip" / "config.json").read_text())["text_cfg"]
    vae = json.loads((files.vae / "config.json").read_text())
    text = json.loads((files.text_encoder / "config.json").read_text())
    tokenizer = json.loads((files.tokenizer / "tokenizer_config.json").read_text())
    assert architecture.in_channels == architecture.out_channels == vae["z_dim"] == 16
    assert architecture.text_dim == text["d_model"]
    assert architecture.text_len == clip["context_length"] == tokenizer["model_max_length"]
    assert text["vocab_size"] == clip["vocab_size"]


def test_the_vae_restores_heldout_clips() -> None:
    """No reward can see what the decoder can't draw."""
    vae = VideoVAE.load(resolve("builtin:sprites").vae, "cpu", torch.float32)
    clips = render_clips(heldout_captions()[:16], DRAWING_SEED)
    pixels = torch.from_numpy(clips).float() / 127.5 - 1
    latents = vae.encode(pixels)
    assert latents.shape == (16, 9, 16, 4, 4)
    assert latents.std(dim=(0, 1, 3, 4)).tolist() == pytest.approx([1.0] * 16, abs=0.4)
    assert latents.mean(dim=(0, 1, 3, 4)).tolist() == pytest.approx([0.0] * 16, abs=0.4)
    squared_error = ((vae.decode(latents) - pixels) / 2).square().mean(dim=(1, 2, 3, 4))
    psnr = -10 * squared_error.log10()
    assert psnr.mean() > VAE_PSNR_DB
    assert psnr.min() > VAE_WORST_PSNR_DB


def test_the_text_encoder_tells_all_captions_apart() -> None:
    """Captions with one embedding get one video."""
    embeddings = text_encoder().encode([str(caption) for caption in all_captions()])
    means = embeddings.sum(1) / embeddings.any(dim=2).sum(1, keepdim=True)
    distances = torch.cdist(means, means).fill_diagonal_(float("inf"))
    assert distances.min() > 0.1 * means.std(0).norm()


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_attribute_can_be_read_from_embeddings_of_heldout_captions(attribute: str) -> None:
    """What a linear map can't read, a tiny transformer will not learn to draw."""
    captions, values = all_captions(), ATTRIBUTES[attribute]
    embeddings = text_encoder().encode([str(caption) for caption in captions])
    means = embeddings.sum(1) / embeddings.any(dim=2).sum(1, keepdim=True)
    inputs = torch.cat([means, torch.ones(len(means), 1)], dim=1)
    truth = torch.tensor([values.index(getattr(caption, attribute)) for caption in captions])
    is_heldout = torch.tensor([caption.is_heldout for caption in captions])
    one_hot = torch.nn.functional.one_hot(truth[~is_heldout]).float()
    probe = torch.linalg.lstsq(inputs[~is_heldout], one_hot).solution
    right = (inputs[is_heldout] @ probe).argmax(1) == truth[is_heldout]
    assert right.float().mean() >= TEXT_ACCURACY


def view(caption: SpriteCaption, seed: int) -> np.ndarray:
    return derive_view(render(caption, seed), TINY_FRAMES)


def test_the_scorer_likes_clips_that_show_their_captions() -> None:
    """A reward that is low for perfect videos leaves nothing to learn."""
    captions = heldout_captions()[:48]
    videos = np.stack([view(caption, DRAWING_SEED + i) for i, caption in enumerate(captions)])
    scores = scorer().score(videos, [str(caption) for caption in captions])["tiny_clip"]
    assert scores.mean() > CLIP_SCORE


@pytest.mark.parametrize("attribute", CLIP_ACCURACY)
def test_the_scorer_prefers_the_caption_with_the_right(attribute: str) -> None:
    """A reward that is blind to an attribute gives no reason to draw it."""
    captions, right = heldout_captions()[:60], 0
    for i, caption in enumerate(captions):
        rivals = [replace(caption, **{attribute: value}) for value in ATTRIBUTES[attribute]]
        videos = np.stack([view(caption, DRAWING_SEED + i)] * len(rivals))
        best = int(scorer().score(videos, [str(rival) for rival in rivals])["tiny_clip"].argmax())
        right += rivals[best] == caption
    assert right / len(captions) >= CLIP_ACCURACY[attribute]


def test_sampling_gives_another_video_for_another_prompt_or_seed() -> None:
    """A collapsed model has groups without differences, so no advantage and nothing to train on."""
    spec = importlib.util.spec_from_file_location("make_contact_sheet", MAKE_CONTACT_SHEET)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prompts = [str(caption) for caption in heldout_captions()[:2]]
    videos = module.sampled_videos(ModelConfig(), [prompts[0], prompts[0], prompts[1]], 0)
    assert (videos.shape, videos.dtype) == ((3, 33, 3, 32, 32), np.uint8)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(videos[first].astype(int) - videos[second]).mean() > 1
    again = module.sampled_videos(ModelConfig(), [prompts[0]], 0)
    assert np.abs(again[0].astype(int) - videos[0]).max() <= 1
