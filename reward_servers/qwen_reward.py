"""A Qwen2-VL that is read at special tokens instead of writing: the network of HPSv3 and VideoReward.

Differs from what transformers does by default in one thing: positions are plain 0, 1, 2, ... on all three
axes, also over pictures. Both models were trained like this, and their scores change without it.

Legend of axes: B sequences, L tokens, K special tokens, D numbers of a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.models.checkpoints import load_strict
from astrolabe_ray.models.text_encoder import load_tokenizer

VISION = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
SYSTEM = "You are a helpful assistant."


class QwenReward(nn.Module):
    """The language model reads pictures and text; `head` makes numbers of what it holds at chosen tokens."""

    def __init__(self, config: Qwen2VLConfig, head: nn.Module) -> None:
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        self.head = head

    def forward(
        self, ids_BL: Tensor, patches: Tensor, grids: Tensor, read: Sequence[int], kind: str
    ) -> Tensor:
        """What the head says at each token of `read`, in order: float32 [B, K, numbers].

        Padding on the right needs no mask: no token sees what comes after it.
        """
        names = {
            "image": ("pixel_values", "image_grid_thw"),
            "video": ("pixel_values_videos", "video_grid_thw"),
        }
        pixels, grid = names[kind]
        positions = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand(3, *ids_BL.shape)
        held_BLD = self.backbone(
            input_ids=ids_BL,
            position_ids=positions,
            use_cache=False,
            **{pixels: patches, grid: grids},
        ).last_hidden_state
        places = torch.stack([(ids_BL == token).int().argmax(dim=1) for token in read], dim=1)
        read_BKD = held_BLD.gather(1, places[..., None].expand(-1, -1, held_BLD.shape[-1]))
        return self.head(read_BKD.float())


class RewardTokenizer:
    """Turns a text with pictures into token ids; knows the special tokens that the reward is read at."""

    def __init__(self, folder: Path, read_tokens: Sequence[str]) -> None:
        """`read_tokens` are added after the others. Raises ConfigError if one is there, or no tokenizer."""
        self._tokenizer: PreTrainedTokenizerFast = load_tokenizer(folder)
        first = len(self._tokenizer)
        self._tokenizer.add_special_tokens({"additional_special_tokens": list(read_tokens)})
        self.read = [_id(self._tokenizer, token) for token in read_tokens]
        if self.read != list(range(first, first + len(read_tokens))):
            raise ConfigError(
                f"the tokenizer in {folder} has {', '.join(read_tokens)} already; fetch it again"
            )
        if self._tokenizer.pad_token is None:
            raise ConfigError(f"the tokenizer in {folder} has no padding token; fetch it again")
        self._pad = _id(self._tokenizer, str(self._tokenizer.pad_token))
        self._special = set(self._tokenizer.get_added_vocab())

    def __len__(self) -> int:
        return len(self._tokenizer)

    def refuse_special(self, prompt: str) -> None:
        """Raises DataFailure for a prompt with a token that means something to the model."""
        found = sorted(token for token in self._special if token in prompt)
        if found:
            raise DataFailure(
                f"the prompt '{prompt}' contains {', '.join(found)}, which the reward model reads as a mark "
                "and not as text; remove it from the prompt"
            )

    def batch(self, texts: Sequence[str], num_vision: int, kind: str) -> Tensor:
        """Ids [B, L], padded on the right, of one turn with `num_vision` tokens of pictures each."""
        seen = VISION[kind] * num_vision
        turns = [
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>{seen}<|vision_end|>"
            f"{text}<|im_end|>\n<|im_start|>assistant\n"
            for text in texts
        ]
        rows = [self._tokenizer.encode(turn, add_special_tokens=False) for turn in turns]
        assert all(row.count(token) == 1 for row in rows for token in self.read), "read at one place each"
        ids = torch.full((len(rows), max(map(len, rows))), self._pad)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def read_config(folder: Path, num_tokens: int) -> Qwen2VLConfig:
    """The base's sizes with an embedding for each token of the tokenizer. Raises ConfigError."""
    try:
        values = json.loads((folder / "config.json").read_text())
        config = Qwen2VLConfig.from_dict(values)
    except (OSError, ValueError, TypeError, KeyError) as reason:
        raise ConfigError(
            f"{folder / 'config.json'} is no Qwen2-VL config: {reason}; fetch it again"
        ) from None
    text: Any = config.text_config
    text.vocab_size = num_tokens
    return config


def width_of(config: Qwen2VLConfig) -> int:
    """Numbers that the language model holds at each token."""
    text: Any = config.text_config
    return text.hidden_size


def load_network(
    config: Qwen2VLConfig, head: nn.Module, tensors: Mapping[str, Tensor], source: Path, device: str
) -> QwenReward:
    """Strictly, in bfloat16 on a GPU and float32 on a CPU; the head always in float32.

    Raises ConfigError listing the names and shapes that do not fit.
    """
    with init_empty_weights(include_buffers=False):  # frequencies of positions are in no file
        network = QwenReward(config, head)
    load_strict(network, renamed(tensors), source)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for parameter in network.backbone.parameters():
        parameter.data = parameter.data.to(device, dtype)
    network.head.float()
    return network.to(device).eval().requires_grad_(False)


_RULES = (  # first match; names as transformers 4.45 saved them, and as 4.52 and later do
    (re.compile(r"^lm_head\..*"), None),  # not read by a reward model
    (re.compile(r"^rm_head\."), "head."),
    (re.compile(r"^(model\.)?visual\."), "backbone.visual."),
    (re.compile(r"^model\.language_model\."), "backbone.language_model."),
    (re.compile(r"^model\."), "backbone.language_model."),
)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> names of `QwenReward`; unknown ones stay and are refused when they are loaded."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in _RULES:
            if pattern.match(name):
                if new is not None:
                    found[pattern.sub(new, name)] = tensor
                break
        else:
            found[name] = tensor
    return found


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what PEFT put around them, but for those of the LoRA."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
    }


_LORA = re.compile(r"(.+)\.lora_([AB])(\.\w+)?\.weight")


def merged_lora(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights W + alpha / rank x B A, of weights beside their LoRA.

    Raises KeyError for half a pair, a pair without its weight, and what else begins with `lora_`.
    """
    merged = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    pairs: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name in tensors.keys() - merged.keys():
        found = _LORA.fullmatch(name)
        if found is None:
            raise KeyError(name)
        pairs[found[2]][found[1]] = tensors[name]
    for layer in sorted(pairs["A"].keys() | pairs["B"].keys()):
        down, up, weight = pairs["A"][layer], pairs["B"][layer], merged[f"{layer}.weight"]
        change = alpha / down.shape[0] * (up.float() @ down.float())
        merged[f"{layer}.weight"] = (weight.float() + change).to(weight.dtype)
    return merged
