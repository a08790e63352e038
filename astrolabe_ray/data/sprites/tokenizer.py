"""Word-level tokenizer over the words of the caption grammar, shared by text encoder and CLIP."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from astrolabe_ray.data.sprites.captions import all_captions

TEXT_LEN = 16
"""Tokens of the longest caption (12 words, end) with room to spare."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """`<pad>` is 0 and `</s>`, which closes every caption, has the highest id: CLIP reads its text
    feature at the largest id of a row."""
    words = sorted({word for caption in all_captions() for word in str(caption).split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *words, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = vocabulary["</s>"]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LEN,
    )
