"""The tokens of the retrieval task: disjoint sets of keys, values and noise. Numbers only, so that it loads at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BOS, EOS = 0, 1
KEYS = VALUES = 160
FIRST_KEY = 2
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_NOISE = FIRST_VALUE + VALUES
VOCAB = 384


def words() -> list[str]:
    """The word of each token id: `k7` is a key, `v7` a value, `n7` noise."""
    keys = [f"k{i}" for i in range(KEYS)]
    values = [f"v{i}" for i in range(VALUES)]
    return ["<bos>", "<eos>", *keys, *values, *(f"n{i}" for i in range(VOCAB - FIRST_NOISE))]


def save_tokenizer(directory: Path) -> None:
    """Write a tokenizer of these words, separated by spaces, in transformers' layout."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner: Any = Tokenizer(WordLevel({word: i for i, word in enumerate(words())}, unk_token="<eos>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
    made.save_pretrained(directory)
