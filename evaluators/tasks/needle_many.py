"""Needle retrieval with several answers, in the manner of RULER (arXiv 2404.06654).

`needle_multivalue` hides several numbers for one key, `needle_multiquery` asks for the numbers of several keys at
once. An answer is right if all numbers are in it: one selection of pages must serve several places.
"""

from __future__ import annotations

import random

from pydantic import Field

from evaluators.errors import no_room
from evaluators.tasks.as_ruler import RulerParameters, as_ruler
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.haystack import draw_keys, draw_passage, hide
from evaluators.tasks.needle import NEEDLE, draw_number
from evaluators.tasks.tokens import Tokenizer, encode, frame

_BEFORE = (
    "Some special magic numbers are hidden in the following text. Read the text and remember the numbers: "
    "you will be asked for them afterwards.\n\n"
)
_AFTER = "\n\nWhat are all the special magic numbers for {keys} mentioned in the text above?"
_ANSWER = "The special magic numbers for {keys} mentioned in the text are"
_RULER_TOKENS = 128


class ManyParameters(RulerParameters):
    """See the module."""

    answers: int = Field(4, ge=2, le=16, description="numbers that must be found")


class NeedleMultivalue(AnswerTask[ManyParameters]):
    """All numbers of one key."""

    name = "needle_multivalue"
    parameters = ManyParameters

    def item(self, tokenizer: Tokenizer, given: ManyParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        keys = draw_keys(rng, 1) * given.answers
        question = _question(tokenizer, self.name, given.context, index, rng, keys)
        return as_ruler(question, _RULER_TOKENS) if given.as_ruler else question


class NeedleMultiquery(AnswerTask[ManyParameters]):
    """One number each of several keys."""

    name = "needle_multiquery"
    parameters = ManyParameters

    def item(self, tokenizer: Tokenizer, given: ManyParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        keys = draw_keys(rng, given.answers)
        question = _question(tokenizer, self.name, given.context, index, rng, keys)
        return as_ruler(question, _RULER_TOKENS) if given.as_ruler else question


def _question(
    tokenizer: Tokenizer, task: str, context: int, index: int, rng: random.Random, keys: list[str]
) -> Question:
    """A needle for each key, at a depth of its own; a question for all of them."""
    values = [draw_number(rng) for _ in keys]
    asked = list(dict.fromkeys(keys))
    named = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    head, tail = frame(tokenizer, _BEFORE, _AFTER.format(keys=named), _ANSWER.format(keys=named))
    needles = [
        encode(tokenizer, NEEDLE.format(key=key, value=value))
        for key, value in zip(keys, values, strict=True)
    ]
    room = context - len(head) - len(tail) - sum(map(len, needles))
    if room < 2 * max(map(len, needles)):
        raise no_room(context, room, task)
    depths = sorted(rng.random() for _ in needles)
    passage, starts = hide(draw_passage(tokenizer, rng, room), needles, depths)
    prompt = (*head, *passage, *tail)
    assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
    return Question(
        index=index,
        prompt=prompt,
        answers=tuple(values),
        metric="number",
        max_new_tokens=len(encode(tokenizer, f" {', '.join(values[:-1])}, and {values[-1]}.")) + 8,
        about={
            "keys": asked,
            "depths": [round(depth, 2) for depth in depths],
            "needle_tokens": [
                [len(head) + start, len(head) + start + len(needle)]
                for start, needle in zip(starts, needles, strict=True)
            ],
        },
    )
