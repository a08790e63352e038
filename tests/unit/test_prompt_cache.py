"""Text embeddings on disk against the encoder that made them, with the embedded model's."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.models import prompt_cache
from astrolabe_ray.models.files import files_of
from astrolabe_ray.models.prompt_cache import PromptCache, prompt_encoder
from astrolabe_ray.models.text_encoder import TextEncoder

FILES = files_of(ModelConfig())
PROMPTS = ["a large red circle moves left on a white background", "a star"]


class Counting(TextEncoder):
    """Counts the prompts that it encodes."""

    num_encoded = 0

    def encode(self, prompts: Sequence[str]) -> Tensor:
        self.num_encoded += len(prompts)
        return super().encode(prompts)


def encoder(dtype: torch.dtype = torch.float32, text_len: int = 64) -> Counting:
    made = TextEncoder.load(FILES.text_encoder, FILES.tokenizer, text_len, "cpu", dtype)
    made.__class__ = Counting
    assert isinstance(made, Counting)
    return made


def encoding(text_encoder: TextEncoder, folder: Path) -> Callable[[str], Tensor]:
    return prompt_encoder(text_encoder, FILES, str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_process_takes_what_the_first_one_made_bit_by_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """Actor and learner would see other texts, or padding that is not zero."""
    first, second = encoder(dtype), encoder(dtype)
    folder = tmp_path / "not" / "there"
    for prompt in PROMPTS:
        want = TextEncoder.encode(first, [prompt])[0]
        first.num_encoded = 0
        assert torch.equal(encoding(first, folder)(prompt), want)
        taken = encoding(second, folder)(f"  {prompt} ")  # the same once it is cleaned
        assert torch.equal(taken, want) and taken.dtype == dtype
    assert (first.num_encoded, second.num_encoded) == (1, 0)
    assert max(path.stat().st_size for path in folder.iterdir()) < 64 * want.shape[1] * want.itemsize


def test_embeddings_of_another_encoder_are_not_taken(tmp_path: Path) -> None:
    """Another dtype, length or set of weights makes other numbers under the same prompt."""
    same, short, coarse = encoder(), encoder(text_len=32), encoder(torch.bfloat16)
    for each in (same, short, coarse):
        encoding(each, tmp_path)(PROMPTS[0])
    PromptCache(same, tmp_path, "other weights").encode(PROMPTS[0])
    assert (same.num_encoded, short.num_encoded, coarse.num_encoded) == (2, 1, 1)
    assert len(list(tmp_path.iterdir())) == 4


def flipped(content: bytes, place: int) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: flipped(content, -1),
        lambda content: flipped(content, 3),
        lambda content: content.replace(b'"F32"', b'"I32"'),
        lambda content: content.replace(b'"sha256"', b'"sha255"'),
        lambda content: content[:-1],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_made_again(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """A flipped bit would train on another prompt without a word."""
    want = encoding(encoder(), tmp_path)(PROMPTS[0])
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    again = encoder()
    for _ in range(2):
        assert torch.equal(encoding(again, tmp_path)(PROMPTS[0]), want)
    assert again.num_encoded == 1


@contextmanager
def disk_full() -> Iterator[None]:
    """No file may have more than 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("name", "trouble"), [("file/folder", nullcontext), ("folder", disk_full)])
def test_a_folder_that_can_not_be_used_is_told_of_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    trouble: Callable[[], AbstractContextManager[None]],
) -> None:
    """A full disk must not end a run, nor fill its log."""
    (tmp_path / "file").touch()
    counting = encoder()
    encode = encoding(counting, tmp_path / name)
    with caplog.at_level(logging.WARNING), trouble():
        for prompt in PROMPTS:
            assert torch.equal(encode(prompt), TextEncoder.encode(counting, [prompt])[0])
    assert len(caplog.messages) == 1 and "text embeddings are not kept in" in caplog.messages[0]
    assert not list(tmp_path.rglob("*.*")), "half of a file is left"


def test_people_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of mode 0600, and files that one may read and not touch, were encoded again by everybody else."""
    before = os.umask(0o022)
    try:
        encoding(encoder(), tmp_path)(PROMPTS[0])
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(prompt_cache.os, "utime", refuse)
    counting = encoder()
    encoding(counting, tmp_path)(PROMPTS[0])
    assert counting.num_encoded == 0


def test_what_lies_beside_the_embeddings_stays(tmp_path: Path) -> None:
    """The folder may be one that holds other things, too."""
    encoding(encoder(), tmp_path)(PROMPTS[0])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "models").mkdir()
    prompt_cache.prune(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "notes.txt"]


@pytest.mark.parametrize("place", [0, -1])
def test_other_weights_with_the_times_of_the_first_are_others(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives with normalised times: a model would be trained with the texts of another one."""
    monkeypatch.setattr(prompt_cache, "SAMPLE_BYTES", 16)
    folder = Path(shutil.copytree(FILES.text_encoder, tmp_path / "text_encoder"))
    files, counting = replace(FILES, text_encoder=folder), encoder()
    prompt_encoder(counting, files, str(tmp_path / "texts"))(PROMPTS[0])
    (weights,) = folder.glob("*.safetensors")
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[place] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    prompt_encoder(counting, files, str(tmp_path / "texts"))(PROMPTS[0])
    assert counting.num_encoded == 2


def test_a_file_beside_the_weights_that_may_not_be_read_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloads leave locks of mode 0600."""
    folder = Path(shutil.copytree(FILES.text_encoder, tmp_path / "text_encoder"))
    (folder / "download.lock").touch()
    opened = Path.open

    def refuse(path: Path, mode: str = "r") -> object:
        if path.suffix == ".lock":
            raise PermissionError(path)
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    counting, files = encoder(), replace(FILES, text_encoder=folder)
    for _ in range(2):
        prompt_encoder(counting, files, str(tmp_path / "texts"))(PROMPTS[0])
    assert counting.num_encoded == 1


def test_files_that_may_not_be_deleted_leave_the_cache_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a folder of several people a file goes with its owner only."""

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(prompt_cache, "MAX_PROMPTS", 0)
    encode = encoding(encoder(), tmp_path)
    for prompt in PROMPTS:
        encode(prompt)
    assert len(list(tmp_path.iterdir())) == 2 and not caplog.messages


def test_a_link_to_nowhere_beside_the_text_encoder_is_no_part_of_it(tmp_path: Path) -> None:
    """Such links lie in a folder of a model hub's downloads."""
    folder = Path(shutil.copytree(FILES.text_encoder, tmp_path / "text_encoder"))
    files = replace(FILES, text_encoder=folder)
    counting = encoder()
    prompt_encoder(counting, files, str(tmp_path / "texts"))(PROMPTS[0])
    (folder / "README.md").symlink_to(tmp_path / "nowhere")
    prompt_encoder(counting, files, str(tmp_path / "texts"))(PROMPTS[0])
    assert counting.num_encoded == 1


def test_the_folder_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over a million prompts would fill the disk."""
    monkeypatch.setattr(prompt_cache, "PRUNE_EVERY", 2)
    monkeypatch.setattr(prompt_cache, "MAX_PROMPTS", 2)
    encode = encoding(encoder(), tmp_path)
    encode("a star")
    for age, path in enumerate(tmp_path.iterdir(), 1):
        os.utime(path, ns=(age, age))
    encode("a circle")
    for path in tmp_path.iterdir():
        os.utime(path, ns=(5, 5))
    encode("a star")  # used now
    encode("a square")
    counting = encoder()
    encode = encoding(counting, tmp_path)
    for prompt in ("a star", "a square"):
        encode(prompt)
    assert counting.num_encoded == 0
    encode("a circle")
    assert counting.num_encoded == 1


def test_many_processes_that_write_little_keep_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them comes to the count after which it looks, and the folder would grow for ever."""
    monkeypatch.setattr(prompt_cache, "MAX_PROMPTS", 2)
    for colour in ("red", "green", "blue", "grey"):
        encode = encoding(encoder(), tmp_path)
        for shape in ("star", "circle"):
            encode(f"a {colour} {shape}")
    assert len(list(tmp_path.iterdir())) == 3, "two after the first prompt of the last one, and its second"


def test_without_a_folder_each_process_encodes() -> None:
    """The demo writes nothing beside its run."""
    counting = encoder()
    encode = prompt_encoder(counting, FILES, None)
    assert torch.equal(encode(PROMPTS[0]), encode(PROMPTS[0])) and counting.num_encoded == 2
