"""Model files of every published layout at a size for tests; names and shapes are typed from descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from astrolabe_ray.models.registry import load_transformer, resolve
from tests.random_wan import ARCHITECTURE
from tests.tiny_model import WORDS, write_tokenizer

TEXT_DIM, BASE_DIM = ARCHITECTURE.text_dim, 4


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def original_vae_shapes(dim: int = BASE_DIM, z: int = 16) -> dict[str, tuple[int, ...]]:
    """The original Wan VAE with multipliers 1, 2, 4, 4 and two residual blocks a level."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, *kernel: int) -> None:
        shapes.update({f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)})

    def residual(name: str, into: int, out: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (into, 1, 1, 1)
        conv(f"{name}.residual.2", out, into, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (out, 1, 1, 1)
        conv(f"{name}.residual.6", out, out, 3, 3, 3)
        if into != out:
            conv(f"{name}.shortcut", out, into, 1, 1, 1)

    def middle(side: str, width: int) -> None:
        residual(f"{side}.middle.0", width, width)
        shapes[f"{side}.middle.1.norm.gamma"] = (width, 1, 1)
        conv(f"{side}.middle.1.to_qkv", 3 * width, width, 1, 1)
        conv(f"{side}.middle.1.proj", width, width, 1, 1)
        residual(f"{side}.middle.2", width, width)

    conv("encoder.conv1", dim, 3, 3, 3, 3)
    down = [(dim, dim), (dim, 2 * dim), (2 * dim, 4 * dim), (4 * dim, 4 * dim)]
    for level, (into, out) in enumerate(down):
        residual(f"encoder.downsamples.{3 * level}", into, out)
        residual(f"encoder.downsamples.{3 * level + 1}", out, out)
        if level < 3:
            conv(f"encoder.downsamples.{3 * level + 2}.resample.1", out, out, 3, 3)
        if level in (1, 2):
            conv(f"encoder.downsamples.{3 * level + 2}.time_conv", out, out, 3, 1, 1)
    middle("encoder", 4 * dim)
    shapes["encoder.head.0.gamma"] = (4 * dim, 1, 1, 1)
    conv("encoder.head.2", 2 * z, 4 * dim, 3, 3, 3)
    conv("conv1", 2 * z, 2 * z, 1, 1, 1)
    conv("conv2", z, z, 1, 1, 1)
    conv("decoder.conv1", 4 * dim, z, 3, 3, 3)
    middle("decoder", 4 * dim)
    up = [(4 * dim, 4 * dim), (2 * dim, 4 * dim), (2 * dim, 2 * dim), (dim, dim)]
    for level, (into, out) in enumerate(up):
        for number in range(3):
            residual(f"decoder.upsamples.{4 * level + number}", into if number == 0 else out, out)
        if level < 3:
            conv(f"decoder.upsamples.{4 * level + 3}.resample.1", out // 2, out, 3, 3)
        if level in (0, 1):
            conv(f"decoder.upsamples.{4 * level + 3}.time_conv", 2 * out, out, 3, 1, 1)
    shapes["decoder.head.0.gamma"] = (dim, 1, 1, 1)
    conv("decoder.head.2", 3, dim, 3, 3, 3)
    return shapes


def original_text_encoder_shapes(layers: int = 2, heads: int = 2, d_kv: int = 6, d_ff: int = 16):
    """The original UMT5 encoder, without biases and with a position bias of its own in every layer."""
    d, attention = TEXT_DIM, heads * d_kv
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (len(WORDS), d), "norm.weight": (d,)}
    for i in range(layers):
        block = f"blocks.{i}"
        shapes |= {f"{block}.norm{n}.weight": (d,) for n in (1, 2)}
        shapes |= {f"{block}.attn.{part}.weight": (attention, d) for part in "qkv"}
        shapes[f"{block}.attn.o.weight"] = (d, attention)
        shapes[f"{block}.pos_embedding.embedding.weight"] = (32, heads)
        shapes[f"{block}.ffn.gate.0.weight"] = shapes[f"{block}.ffn.fc1.weight"] = (d_ff, d)
        shapes[f"{block}.ffn.fc2.weight"] = (d, d_ff)
    return shapes


def transformer_shapes(in_channels: int = 16) -> dict[str, tuple[int, ...]]:
    """Original names and shapes of a text-to-video transformer of the tests' size."""
    a = ARCHITECTURE
    dim = a.dim
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, in_channels, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
    }

    def linear(name: str, out: int, into: int) -> None:
        shapes.update({f"{name}.weight": (out, into), f"{name}.bias": (out,)})

    linear("text_embedding.0", dim, a.text_dim)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, a.freq_dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    linear("head.head", 4 * in_channels, dim)
    for i in range(a.num_layers):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (dim,)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        linear(f"{block}.ffn.0", a.ffn_dim, dim)
        linear(f"{block}.ffn.2", dim, a.ffn_dim)
    return shapes


def transformer_tensors(seed: int = 1) -> dict[str, Tensor]:
    return random_tensors(transformer_shapes(), seed)


def write_original_base(root: Path, *, weights: bool = False) -> Path:
    """A Wan base directory as published, with text_len 5; returns `root`."""
    root.mkdir(parents=True)
    a = ARCHITECTURE
    sizes = {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": a.dim,
        "num_heads": a.num_heads,
        "num_layers": a.num_layers,
        "ffn_dim": a.ffn_dim,
        "freq_dim": a.freq_dim,
        "text_dim": a.text_dim,
        "text_len": a.text_len,
        "in_dim": 16,
        "out_dim": 16,
        "eps": 1e-6,
    }
    (root / "config.json").write_text(json.dumps(sizes))
    torch.save(random_tensors(original_vae_shapes(), 2), root / "Wan2.1_VAE.pth")
    torch.save(random_tensors(original_text_encoder_shapes(), 3), root / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(root / "google" / "umt5-xxl")
    if weights:
        save_file(transformer_tensors(), root / "diffusion_pytorch_model.safetensors")
    return root


def diffusers_transformer() -> WanTransformer3DModel:
    """Diffusers' own class, of the tests' size, with random weights."""
    a = ARCHITECTURE
    torch.manual_seed(4)
    model = WanTransformer3DModel(
        num_attention_heads=a.num_heads,
        attention_head_dim=a.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=a.text_dim,
        freq_dim=a.freq_dim,
        ffn_dim=a.ffn_dim,
        num_layers=a.num_layers,
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.5)
    return model


def wrapped(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def loaded(base: Path, checkpoint: Path, key: str | None = None) -> dict[str, Tensor]:
    """The transformer's tensors, by the code that loads the real ones."""
    files = resolve(str(base), checkpoint=str(checkpoint), checkpoint_key=key)
    return dict(load_transformer(files, torch.float32, "cpu").state_dict())
