"""UMT5 as Wan published it (`models_t5_umt5-xxl-enc-bf16.pth`), made a UMT5EncoderModel of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import load_strict
from astrolabe_ray.models.weight_files import read_pickled, require_kind

# What no tensor's shape tells; the sizes of UMT5-XXL follow from its tensors.
FEED_FORWARD = "gated-gelu"
EPS = 1e-6
MAX_DISTANCE = 128  # tokens, of the relative position bias

_PARTS = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
} | {f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"}
_BLOCK = re.compile(r"blocks\.(?P<index>\d+)\.(?P<part>.+)\.weight")
_EMBEDDING = "token_embedding.weight"


def read_original_text_encoder(path: Path) -> UMT5EncoderModel:
    """The encoder on the CPU, memory-mapped; sizes are those of the tensors.

    Raises ConfigError if the file is damaged, of another kind or does not hold exactly an encoder.
    """
    loaded = read_pickled(path)
    require_kind(loaded, "a text encoder", path)
    try:
        config = _config(loaded)
    except KeyError as missing:
        raise ConfigError(f"{path} is no original UMT5: it lacks {missing}") from None
    with torch.device("meta"):
        network = UMT5EncoderModel(config)
    load_strict(network, _renamed(loaded), path)
    network.set_input_embeddings(network.shared)  # one tensor under two names
    return network


def _config(tensors: Mapping[str, Tensor]) -> UMT5Config:
    num_layers = len({found["index"] for found in map(_BLOCK.fullmatch, tensors) if found})
    num_buckets, num_heads = tensors["blocks.0.pos_embedding.embedding.weight"].shape
    vocab_size, d_model = tensors[_EMBEDDING].shape
    return UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=tensors["blocks.0.attn.q.weight"].shape[0] // num_heads,
        d_ff=tensors["blocks.0.ffn.fc1.weight"].shape[0],
        num_layers=num_layers,
        num_heads=num_heads,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=MAX_DISTANCE,
        feed_forward_proj=FEED_FORWARD,
        layer_norm_epsilon=EPS,
    )


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names made those of transformers; unknown ones stay."""
    renamed = {_transformers_name(name): tensor for name, tensor in tensors.items() if name != _EMBEDDING}
    return renamed | dict.fromkeys(("shared.weight", "encoder.embed_tokens.weight"), tensors[_EMBEDDING])


def _transformers_name(name: str) -> str:
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    found = _BLOCK.fullmatch(name)
    if found is None:
        return name
    return f"encoder.block.{found['index']}.{_PARTS.get(found['part'], found['part'])}.weight"
