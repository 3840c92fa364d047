"""The tokens of the retrieval tasks: disjoint sets of keys, values and noise. Numbers only, so that it loads at once.

The first model reads pairs alone, `VOCAB` words; the second reads those and the words of more kinds of question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

BOS, EOS = 0, 1
KEYS = VALUES = 160
FIRST_KEY = 2
FIRST_VALUE = FIRST_KEY + KEYS
FIRST_NOISE = FIRST_VALUE + VALUES
VOCAB = 384
HOP, COUNT = VOCAB, VOCAB + 1
FIRST_NUMBER = VOCAB + 2
MOST = 8  # the largest count
SKILLS_VOCAB = FIRST_NUMBER + MOST


def words(vocab: int = SKILLS_VOCAB) -> list[str]:
    """The word of each token id: `k7` is a key, `v7` a value, `n7` noise, `c7` a count; `hop` and `count` ask."""
    keys = [f"k{i}" for i in range(KEYS)]
    values = [f"v{i}" for i in range(VALUES)]
    noise = [f"n{i}" for i in range(VOCAB - FIRST_NOISE)]
    numbers = [f"c{i}" for i in range(1, MOST + 1)]
    return ["<bos>", "<eos>", *keys, *values, *noise, "hop", "count", *numbers][:vocab]


def save_tokenizer(directory: Path, vocab: int = VOCAB) -> None:
    """Write a tokenizer of the first `vocab` words, separated by spaces, in transformers' layout."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    known = {word: i for i, word in enumerate(words(vocab))}
    inner: Any = Tokenizer(WordLevel(known, unk_token="<eos>"))
    inner.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", unk_token="<eos>"
    )
    made.save_pretrained(directory)
