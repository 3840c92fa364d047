"""Frequent words extraction, in the manner of RULER (arXiv 2404.06654): the most frequent of made-up words.

Frequencies fall as in natural text (Zipf): word `k` stands about `(n + 1) / k^exponent` times as often as the
rarest. Asked for are the three most frequent; the words mean nothing, so only the text can tell.
"""

from __future__ import annotations

import random
import string

from pydantic import Field

from evaluators.tasks.as_ruler import RulerParameters, as_ruler
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.tokens import Tokenizer, encode, frame
from evaluators.tasks.word_list import fill

_BEFORE = "Read the following coded text and track how often each coded word appears in it.\n\n"
_AFTER = "\n\nWhat are the three most frequent words in the coded text above?"
_ANSWER = "The three most frequent words in the coded text are:"
_ASKED = 3
_RULER_TOKENS = 50


class FrequentWordsParameters(RulerParameters):
    """See the module."""

    words: int = Field(20, ge=_ASKED + 1, le=1000, description="different words")
    exponent: float = Field(2.0, gt=0.5, le=4, description="how steeply frequencies fall")


class FrequentWords(AnswerTask[FrequentWordsParameters]):
    """The three most frequent words."""

    name = "frequent_words"
    parameters = FrequentWordsParameters

    def item(self, tokenizer: Tokenizer, given: FrequentWordsParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        coded: dict[str, None] = {}
        while len(coded) < given.words:
            coded["".join(rng.choices(string.ascii_lowercase, k=6))] = None
        ranked = list(coded)
        # The steepest three lead by at least one more in every round than the word behind them.
        weights = [1 / rank**given.exponent for rank in range(1, given.words + 1)]
        least = weights[_ASKED - 1] - weights[_ASKED]
        counts = [max(1, round(weight / least)) for weight in weights]
        one = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
        head, tail = frame(tokenizer, _BEFORE, _AFTER, _ANSWER)
        room = given.context - len(head) - len(tail)
        body = fill(tokenizer, rng, self.name, given.context, room, [one] * given.context)
        answers = tuple(ranked[:_ASKED])
        question = Question(
            index=index,
            prompt=(*head, *body, *tail),
            answers=answers,
            metric="contains",
            max_new_tokens=len(encode(tokenizer, f" {', '.join(answers)}.")) + 8,
            about={"words": given.words, "counts_in_a_round": counts[: _ASKED + 1]},
        )
        return as_ruler(question, _RULER_TOKENS) if given.as_ruler else question
