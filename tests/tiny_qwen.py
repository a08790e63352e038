"""Files of HPSv3 and VideoReward as they are published, of kilobytes, with random weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from astrolabe_ray.config.reward_files import (
    HPSV3_BASE,
    HPSV3_TEXT,
    HPSV3_WEIGHTS,
    VIDEOREWARD,
    VIDEOREWARD_BASE,
    VIDEOREWARD_TEXT,
    PublishedText,
)

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NUM_BYTES = 256
INSTRUCTION = "\nRate the picture of [{text_prompt}] from 0 to 10.\n"
CLOSING = "\nThe rating: <|Reward|>\n\nEND"
DETAILED = "\nLook <|VQ_reward|>END\nMoves <|MQ_reward|>END\nShows {text_prompt}? <|TA_reward|>END\n"


def known(name: str, text: str) -> PublishedText:
    return PublishedText(name, len(text), hashlib.sha256(text.encode()).hexdigest())


TEXTS = (known("INSTRUCTION", INSTRUCTION), known("prompt_with_special_token", CLOSING))
TEXT = known("DETAILED_PROMPT_WITH_SPECIAL_TOKEN", DETAILED)


def flat_config() -> dict[str, object]:
    """`config.json` as Qwen2-VL was published: the language model's sizes at the top."""
    return {
        "model_type": "qwen2_vl",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 300,  # padded, like the published one
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "bos_token_id": NUM_BYTES,
        "eos_token_id": NUM_BYTES + 2,
        "vision_start_token_id": NUM_BYTES + 3,
        "vision_end_token_id": NUM_BYTES + 4,
        "image_token_id": NUM_BYTES + 6,
        "video_token_id": NUM_BYTES + 7,
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def write_base(folder: Path) -> None:
    """Sizes and a tokenizer of single bytes with Qwen2-VL's marks after them."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=MARKS[0], eos_token=MARKS[2])
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(flat_config()))


def random_backbone(num_tokens: int, seed: int = 0) -> Qwen2VLModel:
    """With activations of ordinary size, so that a wrong input shows."""
    config = Qwen2VLConfig.from_dict(flat_config())
    config.text_config.vocab_size = num_tokens
    torch.manual_seed(seed)
    backbone = Qwen2VLModel(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


def published_names(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Names of `Qwen2VLModel` here -> in files of transformers 4.45, or of 4.52 and later."""
    if layout == "new":
        return {f"model.{name}": tensor for name, tensor in tensors.items()}
    return {
        f"model.{name.removeprefix('language_model.')}"
        if name.startswith("language_model.")
        else name: tensor
        for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class TinyHPSv3:
    folder: Path
    backbone: Qwen2VLModel
    head: dict[str, Tensor]  # 0.weight, 0.bias, 3.weight, ...


def write_hpsv3(folder: Path, layout: str = "old") -> TinyHPSv3:
    write_base(folder / HPSV3_BASE)
    (folder / HPSV3_TEXT).parent.mkdir(parents=True)
    (folder / HPSV3_TEXT).write_text(
        f"import no_such_module\n\nINSTRUCTION = {INSTRUCTION!r}\nprompt_with_special_token = {CLOSING!r}\n"
    )
    backbone = random_backbone(NUM_BYTES + len(MARKS) + 1)
    sizes = {"0": (1024, 32), "3": (16, 1024), "5": (2, 16)}
    head = {f"{n}.weight": torch.randn(s) / s[1] ** 0.5 for n, s in sizes.items()}
    head |= {f"{n}.bias": torch.randn(s[0]) for n, s in sizes.items()}
    tensors = published_names(backbone.state_dict(), layout)
    tensors |= {f"rm_head.{name}": tensor for name, tensor in head.items()}
    tensors["lm_head.weight"] = torch.randn(NUM_BYTES + len(MARKS) + 1, 32)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / HPSV3_WEIGHTS)
    return TinyHPSv3(folder, backbone, head)


@dataclass(frozen=True)
class TinyVideoReward:
    folder: Path
    backbone: Qwen2VLModel  # with the LoRA merged by PEFT
    head: Tensor  # [1 or 3, 32]


RELEASED = {
    "VQ_mean": 3.6757,
    "VQ_std": 2.2476,
    "MQ_mean": 1.1646,
    "MQ_std": 1.3811,
    "TA_mean": 2.8105,
    "TA_std": 2.5121,
}


def write_videoreward(folder: Path, layout: str = "old", num_outputs: int = 1) -> TinyVideoReward:
    from peft import LoraConfig, get_peft_model

    write_base(folder / VIDEOREWARD_BASE)
    newest = folder / VIDEOREWARD / "checkpoint-120"
    newest.mkdir(parents=True)
    (folder / VIDEOREWARD / "checkpoint-9").mkdir()
    (folder / VIDEOREWARD / "checkpoint-9" / "model.pth").write_bytes(b"an older one")
    (folder / VIDEOREWARD_TEXT).write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {DETAILED!r}\n")
    (folder / VIDEOREWARD / "model_config.json").write_text(
        json.dumps({"peft_lora_config": {"lora_r": 4, "lora_alpha": 8}, "inference_config": RELEASED})
    )
    wrapped = get_peft_model(
        random_backbone(NUM_BYTES + len(MARKS) + 3, seed=1),  # type: ignore[arg-type]
        LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*(_proj)", init_lora_weights=False),
    )
    inner = {n.removeprefix("base_model.model."): t for n, t in wrapped.state_dict().items()}
    head = torch.randn(num_outputs, 32)
    tensors = published_names(inner, layout) | {"rm_head.weight": head, "lm_head.weight": torch.randn(9, 32)}
    named = {f"base_model.model.{name}": tensor.clone() for name, tensor in tensors.items()}
    torch.save(named, newest / "model.pth")
    merged = wrapped.merge_and_unload()  # type: ignore[operator]
    return TinyVideoReward(folder, merged.eval(), head)


def split(tiny: TinyVideoReward) -> Path:
    """Save the newest checkpoint as LoRA and trained rest in its folder, and the base model beside its sizes.

    The base has another vision tower, and more embeddings than there are tokens, in two files with an index.
    """
    folder, base = tiny.folder / VIDEOREWARD / "checkpoint-120", tiny.folder / VIDEOREWARD_BASE
    whole = torch.load(folder / "model.pth", weights_only=True)
    (folder / "model.pth").unlink()
    lora = {name.replace(".default.", "."): x for name, x in whole.items() if ".lora_" in name}
    rest = {name: x for name, x in whole.items() if "visual." in name or "rm_head" in name}
    save_file(lora, folder / "adapter_model.safetensors")
    torch.save(rest, folder / "non_lora_state_dict.pth")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    plain = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): x
        for name, x in whole.items()
        if ".lora_" not in name and "_head" not in name
    }
    for name, x in plain.items():
        if "visual." in name:
            plain[name] = torch.randn_like(x)
        if "embed_tokens" in name:
            plain[name] = torch.cat([x, torch.randn(33, x.shape[1])])
    halves = (sorted(plain)[::2], sorted(plain)[1::2])
    places = {name: f"model-0000{i + 1}-of-00002.safetensors" for i in (0, 1) for name in halves[i]}
    for i, half in enumerate(halves):
        save_file({name: plain[name] for name in half}, base / f"model-0000{i + 1}-of-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
