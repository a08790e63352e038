"""Text embeddings on disk: a prompt is encoded once, by whichever process meets it first.

A rollout actor meets a prompt first and learner ranks take what it left; later runs with the same text
encoder do so, too. A full-size text encoder is 11 GB, an embedding without its padding some 0.3 MB.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import pad

from astrolabe_ray.models.files import ModelFiles
from astrolabe_ray.models.text_encoder import TextEncoder, clean_prompt

MAX_PROMPTS = 20_000
"""Embeddings that a folder keeps, those used last: some 6 GB of full-size ones."""
PRUNE_EVERY = 200  # embeddings written by one process
SAMPLE_BYTES = 2**20
DIGEST = "sha256"
_OWN = re.compile(r"[0-9a-f]{64}\.(safetensors|[0-9a-f]{32}\.part)")

logger = logging.getLogger(__name__)


def prompt_encoder(encoder: TextEncoder, files: ModelFiles, folder: str | None) -> Callable[[str], Tensor]:
    """Encodes a prompt as [text_len, text_dim], as `encoder` does; taken from `folder` where it is there."""
    if folder is None:
        return lambda prompt: encoder.encode([prompt])[0]
    return PromptCache(encoder, Path(folder), _identity(files)).encode


class PromptCache:
    """Embeddings of one text encoder in a folder that many processes share."""

    def __init__(self, encoder: TextEncoder, folder: Path, identity: str) -> None:
        """`identity`: of the encoder's weights and its tokenizer. A folder that can't be used is told of
        once, and every prompt is then encoded here."""
        self._encoder, self._folder = encoder, folder
        self._made_by = f"{identity} {encoder.text_len} {encoder.dtype} {encoder.device.type}"
        self._num_written, self._is_usable = 0, True

    def encode(self, prompt: str) -> Tensor:
        """[text_len, text_dim], bitwise what the encoder made of this prompt alone."""
        path = self._folder / f"{_digest(f'{self._made_by} {clean_prompt(prompt)}'.encode())}.safetensors"
        found = self._read(path)
        if found is None:
            made = self._encoder.encode([prompt])[0]
            self._write(path, made)
            return made
        return pad(found.to(self._encoder.device), (0, 0, 0, self._encoder.text_len - len(found)))

    def _read(self, path: Path) -> Tensor | None:
        """The rows of a prompt's tokens; None where there are none, or other ones than were written."""
        try:
            kept = load(path.read_bytes())  # not mapped: on a shared disk others may delete it meanwhile
            rows, digest = kept["text"], kept[DIGEST]
        except (OSError, SafetensorError, KeyError):
            return None
        with suppress(OSError):  # read-only, or of another user
            os.utime(path)
        return rows if torch.equal(digest, _digest_row(rows)) else None

    def _write(self, path: Path, text_LD: Tensor) -> None:
        if not self._is_usable:
            return
        filled = text_LD.ne(0).any(1).nonzero()
        rows = text_LD[: int(filled.max()) + 1 if len(filled) else 0].cpu().contiguous()
        draft = path.with_suffix(f".{uuid.uuid4().hex}.part")  # others may write the same prompt
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(save({"text": rows, DIGEST: _digest_row(rows)}))
            draft.replace(path)
            self._num_written += 1
            if self._num_written % PRUNE_EVERY == 1:  # the first one, too: many processes write but a few
                prune(self._folder, MAX_PROMPTS)
        except OSError as reason:
            self._is_usable = False
            with suppress(OSError):
                draft.unlink()
            logger.warning("text embeddings are not kept in %s, each process makes its own: %s", path, reason)


def prune(folder: Path, max_files: int) -> None:
    """Delete all but the `max_files` embeddings in `folder` that were used last."""
    newest_first = sorted(_ages(folder), reverse=True)
    for _, path in newest_first[max_files:]:
        with suppress(OSError):  # another process was faster, or the file is another user's
            path.unlink()


def _ages(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        if _OWN.fullmatch(path.name):
            with suppress(FileNotFoundError):
                yield path.stat().st_mtime_ns, path


def _identity(files: ModelFiles) -> str:
    """Of the files behind a text encoder, by their sizes, times and ends, without reading 11 GB of them."""
    roots = (files.text_encoder, files.tokenizer)
    found = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    told = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns, _ends(path))
        for path in found
        if path.is_file()
    ]
    return _digest(repr(told).encode())


def _ends(path: Path) -> str:
    """Tells most models of one layout apart whose times somebody set alike; empty for what can't be read."""
    try:
        with path.open("rb") as file:
            first = file.read(SAMPLE_BYTES)
            file.seek(max(0, path.stat().st_size - SAMPLE_BYTES))
            return _digest(first + file.read(SAMPLE_BYTES))
    except OSError:  # a lock or a note of somebody, beside the weights
        return ""


def _digest_row(rows: Tensor) -> Tensor:
    """SHA-256 of the rows, their dtype and shape, as 32 bytes."""
    content = repr((rows.dtype, rows.shape)).encode() + rows.contiguous().view(torch.uint8).numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
