"""Text that evaluations are built from: public-domain speeches and word lists, shipped with the package."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Literal

Split = Literal["haystack", "held"]

_SENTENCE_END = re.compile(r'(?<=[.!?])["\')]*\s+(?=["\'(]?[A-Z0-9])')


@cache
def documents(split: Split) -> tuple[str, ...]:
    """The speeches of a split, in file-name order: `haystack` hides needles, `held` is for perplexity."""
    folder = files(__name__) / split
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".txt"))
    return tuple((folder / name).read_text(encoding="utf-8") for name in names)


@cache
def sentences(split: Split) -> tuple[str, ...]:
    """All sentences of a split in order, white space collapsed, headings and one-word scraps left out."""
    found = []
    for text in documents(split):
        for paragraph in text.split("\n"):
            for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
                if len(sentence.split()) > 2 and not sentence.isupper():
                    found.append(sentence)
    return tuple(found)


@cache
def words(kind: Literal["adjectives", "nouns"]) -> tuple[str, ...]:
    """One of the word lists keys are made of."""
    text = (files(__name__) / f"{kind}.txt").read_text(encoding="utf-8")
    return tuple(text.split())
