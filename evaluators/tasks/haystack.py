"""Long English text to hide things in: public-domain speeches, sentence by sentence, filled to an exact size."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from evaluators.data import sentences, words
from evaluators.tasks.tokens import Tokenizer, encode

_GOLDEN = (math.sqrt(5) - 1) / 2


def golden_depth(task: str, context: int, seed: int, index: int) -> float:
    """Where the needle of item `index` lies, 0 (start) to 1 (end): steps of the golden ratio from a random place.

    So any number of items covers the text evenly.
    """
    return ((index + 0.5) * _GOLDEN + random.Random(f"{task}:{context}:{seed}").random()) % 1.0


def draw_keys(rng: random.Random, count: int) -> list[str]:
    """Different keys, such as `amber-anvil`; no two share a word."""
    adjectives, nouns = words("adjectives"), words("nouns")
    pairs = zip(rng.sample(adjectives, count), rng.sample(nouns, count), strict=True)
    return [f"{adjective}-{noun}" for adjective, noun in pairs]


def draw_passage(tokenizer: Tokenizer, rng: random.Random, room: int) -> list[tuple[int, ...]]:
    """Consecutive sentences from a random start, wrapping round; the last is cut so that they fill `room` tokens."""
    corpus = _encoded(tokenizer)
    at = rng.randrange(len(corpus))
    passage: list[tuple[int, ...]] = []
    while room > 0:
        passage.append(corpus[at % len(corpus)][:room])
        room -= len(passage[-1])
        at += 1
    return passage


def hide(
    passage: Sequence[tuple[int, ...]], needles: Sequence[Sequence[int]], depths: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Insert needles between sentences at their depths (0 to 1).

    Returns:
        The ids, and where each needle starts in them. Needles of one gap keep their order.
    """
    total = sum(map(len, passage))
    gaps = [0]
    for sentence in passage[:-1]:  # not behind the last sentence, which is cut short
        gaps.append(gaps[-1] + len(sentence))
    at = [min(range(len(gaps)), key=lambda i, d=d: abs(gaps[i] - d * total)) for d in depths]  # type: ignore[misc]
    ids: list[int] = []
    starts = [-1] * len(needles)
    for i, sentence in enumerate(passage):
        for n, needle in enumerate(needles):
            if at[n] == i:
                starts[n] = len(ids)
                ids += needle
        ids += sentence
    assert min(starts, default=0) >= 0
    return ids, starts


@lru_cache(maxsize=4)
def _encoded(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Sentences of the haystack as ids, each with the space that joins it to the one before."""
    return tuple(tuple(encode(tokenizer, f" {sentence}")) for sentence in sentences("haystack"))
