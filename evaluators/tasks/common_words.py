"""Common words extraction, in the manner of RULER (arXiv 2404.06654): count over the whole text.

A shuffled list in which ten words stand often and all others seldom; asked for are the ten. No single page holds
the answer: it is what much of the text says.
"""

from __future__ import annotations

import random

from pydantic import Field, PositiveInt

from evaluators.data import words
from evaluators.tasks.as_ruler import RulerParameters, as_ruler
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.tokens import Tokenizer, encode, frame
from evaluators.tasks.word_list import fill

_BEFORE = (
    "Below is a list of words. Some words stand in it often. Memorize the ones that stand most often.\n\n"
)
_AFTER = "\n\nWhat are the {count} most common words in the list above?"
_ANSWER = "The {count} most common words in the list are:"
_RULER_TOKENS = 120


class CommonWordsParameters(RulerParameters):
    """See the module."""

    common: int = Field(10, ge=1, le=20, description="words asked for")
    often: PositiveInt = Field(10, description="times a common word stands for each time another does")


class CommonWords(AnswerTask[CommonWordsParameters]):
    """The words that stand most often."""

    name = "common_words"
    parameters = CommonWordsParameters

    def item(self, tokenizer: Tokenizer, given: CommonWordsParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        listed = sorted({*words("nouns"), *words("adjectives")})
        rng.shuffle(listed)
        common, others = listed[: given.common], listed[given.common :]
        # A round: every common word, and as many of the others as stand once for `often` of a common one.
        share = -(-len(others) // given.often)
        rounds = [
            [*common, *(others[(i * share + k) % len(others)] for k in range(share))]
            for i in range(given.context)
        ]
        head, tail = frame(
            tokenizer, _BEFORE, _AFTER.format(count=given.common), _ANSWER.format(count=given.common)
        )
        body = fill(tokenizer, rng, self.name, given.context, given.context - len(head) - len(tail), rounds)
        question = Question(
            index=index,
            prompt=(*head, *body, *tail),
            answers=tuple(common),
            metric="contains",
            max_new_tokens=len(encode(tokenizer, f" {', '.join(common)}.")) + 8,
            about={"common": given.common, "other": len(others)},
        )
        return as_ruler(question, _RULER_TOKENS) if given.as_ruler else question
