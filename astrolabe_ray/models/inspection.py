"""Looks into the files of a model without loading it: names and shapes, not values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import ModelFiles
from astrolabe_ray.models.lora_files import read_lora, require_lora_fits
from astrolabe_ray.models.registry import mapped_transformer
from astrolabe_ray.models.text_encoder import load_tokenizer, mapped_text_encoder
from astrolabe_ray.models.vae import mapped_vae
from astrolabe_ray.models.wan.architecture import read_architecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

Look = Callable[[], str]
"""Opens one part and describes it. Raises ConfigError for what is not as it should be."""


def inspect(files: ModelFiles) -> Iterator[tuple[str, Path, Look]]:
    """Name, place and look of each part."""
    yield "transformer", files.transformer, lambda: _transformer(files)
    yield "vae", files.vae, lambda: _described(mapped_vae(files.vae))
    yield "text encoder", files.text_encoder, lambda: _text_encoder(files)
    yield "tokenizer", files.tokenizer, lambda: _tokenizer(files.tokenizer)
    lora = files.lora_init
    if lora is not None:
        yield "lora", lora, lambda: _lora(lora, files)


def _transformer(files: ModelFiles) -> str:
    model = mapped_transformer(files)
    a, key = model.architecture, files.checkpoint_key
    chosen = f"{key}, " if key else ""
    return f"{chosen}{a.num_layers} layers of dim {a.dim}, {_described(model)}"


def _text_encoder(files: ModelFiles) -> str:
    network, expected = mapped_text_encoder(files.text_encoder), read_architecture(files.architecture)
    if network.config.d_model != expected.text_dim:
        raise ConfigError(
            f"{files.text_encoder} gives embeddings of {network.config.d_model} numbers, the transformer "
            f"takes {expected.text_dim} ({files.architecture})"
        )
    return _described(network)


def _tokenizer(path: Path) -> str:
    return f"{len(load_tokenizer(path)):,} tokens"


def _lora(path: Path, files: ModelFiles) -> str:
    lora = read_lora(path)
    with torch.device("meta"):
        model = CausalWanModel(read_architecture(files.architecture))
    require_lora_fits(lora, model, path)
    return f"rank {lora.rank}, alpha {lora.alpha:g}, {len(lora.tensors)} tensors"


def _described(network: nn.Module) -> str:
    parameters = list(network.parameters())
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return f"{sum(p.numel() for p in parameters):,} parameters, {', '.join(kinds)}"
