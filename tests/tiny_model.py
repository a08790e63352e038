"""A model directory small enough for a test: random weights, the real classes, made in a second."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from astrolabe_ray.models.wan.architecture import WanArchitecture, write_architecture
from astrolabe_ray.models.wan.transformer import CausalWanModel

ARCHITECTURE = WanArchitecture(
    dim=24,
    num_heads=2,
    num_layers=2,
    ffn_dim=32,
    freq_dim=16,
    text_dim=12,
    text_len=5,
    in_channels=4,
    out_channels=4,
)
WORDS = ("[PAD]", "[UNK]", "a", "red", "blue", "circle", "square")


def write_tiny_model(root: Path) -> Path:
    """Write transformer/, vae/, text_encoder/ and tokenizer/; returns `root`."""
    for name in ("transformer", "vae", "text_encoder", "tokenizer"):
        (root / name).mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = CausalWanModel(ARCHITECTURE)
        torch.nn.init.normal_(
            model.head.head.weight, std=0.2
        )  # an untrained head predicts zero for everything
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(WORDS),
                d_model=ARCHITECTURE.text_dim,
                d_kv=6,
                d_ff=16,
                num_layers=1,
                num_heads=2,
            )
        )
        channels = ARCHITECTURE.in_channels
        vae = AutoencoderKLWan(
            base_dim=4,
            z_dim=channels,
            num_res_blocks=1,
            latents_mean=[0.1 * i for i in range(channels)],
            latents_std=[1.0 + 0.2 * i for i in range(channels)],
        )
    write_architecture(ARCHITECTURE, root / "transformer" / "config.json")
    save_file(model.state_dict(), root / "transformer" / "diffusion_pytorch_model.safetensors")
    text_encoder.save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer")
    vae.save_pretrained(root / "vae")
    return root


def write_tokenizer(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder)
