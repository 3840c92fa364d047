"""Perplexity of held text, decoded token by token through the sparse path after a prefilled context."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache

from pydantic import Field, PositiveInt

from evaluators.data import documents
from evaluators.errors import held_text_too_short
from evaluators.tasks.base import LikelihoodTask, Passage, TaskParameters
from evaluators.tasks.tokens import Tokenizer, encode


class HeldTextParameters(TaskParameters):
    """See `HeldText`."""

    continuation: PositiveInt = Field(description="tokens scored per passage")


class HeldText(LikelihoodTask[HeldTextParameters]):
    """Windows of speeches that no needle is hidden in."""

    name = "held_text"
    parameters = HeldTextParameters

    def continuation(self, given: HeldTextParameters) -> int:
        """See `LikelihoodTask`."""
        return given.continuation

    def item(self, tokenizer: Tokenizer, given: HeldTextParameters, seed: int, index: int) -> Passage:
        """A window of one held speech.

        Raises:
            VortexError: `VV002` if no held speech is that long.
        """
        context, continuation = given.context, given.continuation
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        size = context + continuation - len(start)
        texts = [ids for ids in _encoded(tokenizer) if len(ids) >= size]
        if not texts or context <= len(start):
            raise held_text_too_short(size, max(map(len, _encoded(tokenizer))))
        rng = random.Random(f"perplexity:{context}:{seed}:{index}")
        text = texts[(index + seed) % len(texts)]
        at = rng.randrange(len(text) - size + 1)
        ids = (*start, *text[at : at + size])
        return Passage(index, ids[:context], ids[context:])


def perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    """`exp` of the mean negative log-probability (nats) over all tokens of all passages."""
    flat = [value for passage in logprobs for value in passage]
    return math.exp(-sum(flat) / len(flat))


@lru_cache(maxsize=4)
def _encoded(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(encode(tokenizer, text)) for text in documents("held"))
