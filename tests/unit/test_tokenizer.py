"""The tokenizer of the embedded text encoder and CLIP."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from astrolabe_ray.data.sprites.captions import all_captions
from astrolabe_ray.data.sprites.tokenizer import TEXT_LEN, make_tokenizer

TEXT = "a small red circle moves left on a black background"


@pytest.fixture(params=["made", "loaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    """As it is made, and as the product loads it from a folder."""
    made = make_tokenizer()
    if request.param == "made":
        return made
    made.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)


def padded(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """Ids and mask as the text encoder asks for them."""
    row = tokenizer(text, padding="max_length", truncation=True, max_length=TEXT_LEN)
    return row["input_ids"], row["attention_mask"]


def test_every_caption_comes_back_from_its_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    """A caption that loses a word is another caption."""
    texts = [str(caption) for caption in all_captions()]
    rows = tokenizer(texts, padding="max_length", max_length=TEXT_LEN)["input_ids"]
    assert {len(row) for row in rows} == {TEXT_LEN}
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts
    assert len({tuple(row) for row in rows}) == 1920


def test_a_row_is_words_then_one_end_then_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """CLIP reads its text feature at the largest id, so the end must be it, once."""
    ids, mask = padded(tokenizer, TEXT)
    assert tokenizer.convert_ids_to_tokens(ids) == [*TEXT.split(), "</s>", *["<pad>"] * 5]
    assert mask == [1] * 11 + [0] * 5
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 33)
    assert len(tokenizer) == 34
    assert sorted(ids)[-2:] == [max(set(ids) - {33}), 33]


def test_unknown_words_are_marked_and_keep_the_others_in_place(tokenizer: PreTrainedTokenizerBase) -> None:
    """A prompt of one's own must not fail, nor turn into another caption."""
    ids, _ = padded(tokenizer, TEXT.replace("red", "pink"))
    known, _ = padded(tokenizer, TEXT)
    assert [i for i, (a, b) in enumerate(zip(ids, known, strict=True)) if a != b] == [2]
    assert ids[2] == tokenizer.unk_token_id
    assert tokenizer.decode(ids[2]) == "<unk>"


def test_a_longer_prompt_is_cut_and_still_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """Without its end token a cut prompt has no text feature."""
    ids, mask = padded(tokenizer, " ".join(["red"] * 40))
    assert ids == [*[ids[0]] * 15, 33]
    assert sum(mask) == TEXT_LEN


def test_an_empty_prompt_is_its_end_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    """A row without any token would be a mean over nothing."""
    ids, mask = padded(tokenizer, "")
    assert ids == [33] + [0] * 15
    assert sum(mask) == 1
