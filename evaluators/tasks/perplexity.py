"""Perplexity of held text, decoded token by token through the sparse path after a prefilled context."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from pydantic import Field, PositiveInt

from evaluators.data import Split, documents
from evaluators.errors import held_text_too_short
from evaluators.tasks.base import LikelihoodTask, Passage, TaskParameters
from evaluators.tasks.tokens import Tokenizer, encode


class HeldTextParameters(TaskParameters):
    """See `HeldText`."""

    continuation: PositiveInt = Field(description="tokens scored per passage")


class HeldText(LikelihoodTask[HeldTextParameters]):
    """Windows of speeches that no needle is hidden in; a longer one begins in the speeches before it."""

    name = "held_text"
    parameters = HeldTextParameters

    def continuation(self, given: HeldTextParameters) -> int:
        """See `LikelihoodTask`."""
        return given.continuation

    def item(self, tokenizer: Tokenizer, given: HeldTextParameters, seed: int, index: int) -> Passage:
        """A window that ends in a held speech: of that speech alone where one is long enough, else with speeches of
        the haystack before it. What is scored is held either way.

        Raises:
            VortexError: `VV002` if all speeches together are not that long.
        """
        context, continuation = given.context, given.continuation
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        size = context + continuation - len(start)
        rng = random.Random(f"perplexity:{context}:{seed}:{index}")
        held = _encoded(tokenizer, "held")
        before: tuple[int, ...] = ()
        texts = [ids for ids in held if len(ids) >= size]
        if not texts:
            texts = [ids for ids in held if len(ids) >= continuation]
            others = _encoded(tokenizer, "haystack")
            first = (index + seed) % len(others)
            before = tuple(token for ids in (*others[first:], *others[:first]) for token in ids)
        if not texts or context <= len(start):
            raise held_text_too_short(size, max(map(len, held)))
        speech = texts[(index + seed) % len(texts)]
        text = before + speech
        first_start = max(0, len(before) + continuation - size)
        if first_start + size > len(text):
            raise held_text_too_short(size, len(text))
        at = rng.randrange(first_start, len(text) - size + 1)
        ids = (*start, *text[at : at + size])
        return Passage(index, ids[:context], ids[context:])


def perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    """`exp` of the mean negative log-probability (nats) over all tokens of all passages."""
    flat = [value for passage in logprobs for value in passage]
    return math.exp(-sum(flat) / len(flat))


@lru_cache(maxsize=4)
def _encoded(tokenizer: Tokenizer, split: Split) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(encode(tokenizer, text)) for text in documents(split))
