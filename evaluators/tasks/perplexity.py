"""Perplexity of held text, decoded token by token through the sparse path after a prefilled context."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from evaluators.data import documents
from evaluators.errors import held_text_too_short
from evaluators.tasks.tokens import Tokenizer, encode


@dataclass(frozen=True)
class PerplexityItem:
    """One passage.

    Attributes:
        context: prompt length in tokens.
        index: number of the item.
        prompt: token ids of the context.
        continuation: the true next tokens, fed one by one; each is predicted by a sparse decode step.
    """

    context: int
    index: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]


def perplexity_item(
    tokenizer: Tokenizer, *, context: int, continuation: int, seed: int, index: int
) -> PerplexityItem:
    """Passage `index`: a window of one held speech, a deterministic function of the arguments.

    Raises:
        VortexError: `VV002` if no held speech is that long.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    size = context + continuation - len(start)
    texts = [ids for ids in _encoded(tokenizer) if len(ids) >= size]
    if not texts or context <= len(start):
        raise held_text_too_short(size, max(map(len, _encoded(tokenizer))))
    rng = random.Random(f"perplexity:{context}:{seed}:{index}")
    text = texts[(index + seed) % len(texts)]
    at = rng.randrange(len(text) - size + 1)
    ids = (*start, *text[at : at + size])
    return PerplexityItem(context, index, ids[:context], ids[context:])


def perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    """`exp` of the mean negative log-probability (nats) over all tokens of all passages."""
    flat = [value for passage in logprobs for value in passage]
    return math.exp(-sum(flat) / len(flat))


@lru_cache(maxsize=4)
def _encoded(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(encode(tokenizer, text)) for text in documents("held"))
