"""Trains the tiny UMT5 text encoder: every attribute of a caption must be readable from its embedding."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_ray.data.sprites.captions import ATTRIBUTES, SpriteCaption, heldout_captions, train_captions
from astrolabe_ray.data.sprites.tokenizer import TEXT_LEN, make_tokenizer
from astrolabe_ray.data.sprites.training import Trainer

TEXT_DIM = 64
NUM_STEPS = 400
BATCH = 128


def train_text_encoder(seed: int, out: Path) -> dict[str, float]:
    """Write `out/text_encoder` and `out/tokenizer`; returns the probe's accuracy on held-out captions.

    Each embedded word learns to predict, through a linear head that is thrown away, all five
    attributes of its caption, so that word embeddings carry the whole caption.
    """
    torch.manual_seed(seed)
    tokenizer: Any = make_tokenizer()
    network = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_DIM,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    heads = nn.ModuleDict({name: nn.Linear(TEXT_DIM, len(values)) for name, values in ATTRIBUTES.items()})
    rng, captions = random.Random(seed), train_captions()

    def pooled(batch: list[SpriteCaption]) -> Tensor:
        tokens = tokenizer(
            [str(c) for c in batch], padding="max_length", max_length=TEXT_LEN, return_tensors="pt"
        )
        embedded = network(tokens.input_ids, tokens.attention_mask).last_hidden_state
        mask = tokens.attention_mask.unsqueeze(-1)
        return (embedded * mask).sum(1) / mask.sum(1)

    def loss() -> Tensor:
        batch = rng.choices(captions, k=BATCH)
        features = pooled(batch)
        losses = [F.cross_entropy(heads[name](features), labels(batch, name)) for name in ATTRIBUTES]
        return torch.stack(losses).sum()

    Trainer("text encoder", [network, heads], lr=3e-3).run(loss, num_steps=NUM_STEPS)
    network.save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    heldout = heldout_captions()
    with torch.no_grad():
        features = pooled(heldout)
        right = [(heads[n](features).argmax(1) == labels(heldout, n)).float().mean() for n in ATTRIBUTES]
    return {"heldout_attribute_accuracy": float(torch.stack(right).mean())}


def labels(captions: list[SpriteCaption], attribute: str) -> Tensor:
    """Index of each caption's value of `attribute`, [B]."""
    values = ATTRIBUTES[attribute]
    return torch.tensor([values.index(getattr(caption, attribute)) for caption in captions])
