"""Prompts to text embeddings, with the UMT5 encoder of transformers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import ftfy
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel
from transformers.utils.logging import disable_progress_bar

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.checkpoints import placed
from astrolabe_ray.models.original_text_encoder import read_original_text_encoder


class TextEncoder:
    """Frozen text encoder and its tokenizer."""

    def __init__(
        self, network: UMT5EncoderModel, tokenizer: Any, text_len: int, device: torch.device | str
    ) -> None:
        """`device`: where prompts are encoded; the network may lie elsewhere."""
        self._network: Any = network
        self._tokenizer = tokenizer
        self.text_len = text_len
        self._device = torch.device(device)

    @property
    def device(self) -> torch.device:
        """Where prompts are encoded."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings."""
        return self._network.dtype

    @classmethod
    def load(
        cls,
        text_encoder_path: Path,
        tokenizer_path: Path,
        text_len: int,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        on_host: bool = False,
    ) -> TextEncoder:
        """Read folders as transformers saves them, or the original file; no network access.

        `text_len`: tokens per prompt. `on_host`: the weights stay in host memory and are on `device` only
        while prompts are encoded. Raises ConfigError if files are absent or damaged, or weights do
        not fit.
        """
        network = mapped_text_encoder(text_encoder_path, dtype)
        tokenizer = load_tokenizer(tokenizer_path)
        placed(network, "cpu" if on_host else device, dtype)
        return cls(network, tokenizer, text_len, device)

    def to(self, device: torch.device) -> None:
        """Move the network; prompts are encoded where it is."""
        self._network.to(device)
        self._device = device

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, text_len, text_dim]; rows past a prompt's end are zero, longer prompts are cut."""
        tokens = self._tokenizer(
            [clean_prompt(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.text_len,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        with visiting(self._network, self._device):
            embeddings_BLD = self._network(ids, mask).last_hidden_state
        return embeddings_BLD.masked_fill(mask.unsqueeze(-1) == 0, 0.0)


@contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A frozen `network` computes on `device` inside of this block, with copies of what lies elsewhere."""
    tensors = [*network.parameters(), *network.buffers()]
    homes = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home


def mapped_text_encoder(path: Path, dtype: torch.dtype | Literal["auto"] = "auto") -> UMT5EncoderModel:
    """The network on the CPU, checked by name and shape: of the original file, where its weights lie, or
    of a folder, read in `dtype` (auto: as stored).
    """
    if path.is_file():
        return read_original_text_encoder(path)
    disable_progress_bar()  # it would be drawn into the plan of a run
    try:
        load: Any = UMT5EncoderModel.from_pretrained
        network, report = load(
            path,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
    except (OSError, ValueError, TypeError, SafetensorError, StrictDataclassError) as reason:
        raise ConfigError(f"can't read {path}: {' '.join(str(reason).split())}") from None
    unfit = {kind: sorted(keys) for kind, keys in report.items() if kind.endswith("_keys") and keys}
    if unfit:
        raise ConfigError(f"weights in {path} do not fit its config.json: {unfit}")
    return network


def load_tokenizer(path: Path) -> Any:
    """Raises ConfigError if `path` is no folder of a tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as reason:  # no JSON, or of another kind
        raise ConfigError(f"can't read the tokenizer in {path}: {reason}") from None


def clean_prompt(prompt: str) -> str:
    """Repaired Unicode, HTML entities resolved (twice), single spaces: what the encoder was trained on."""
    unescaped = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", unescaped).strip()
