"""Variable tracking, in the manner of RULER (arXiv 2404.06654): follow assignments through long text.

Chains `VAR A = 12345`, `VAR B = VAR A`, ... are scattered in order over the text; asked for are all variables of
one chain. Each hop is found only through the one before it, and the other chains look alike.
"""

from __future__ import annotations

import random
import string

from pydantic import Field, PositiveInt

from evaluators.errors import no_room
from evaluators.tasks.as_ruler import RulerParameters, as_ruler
from evaluators.tasks.base import AnswerTask, Question
from evaluators.tasks.haystack import draw_passage, hide
from evaluators.tasks.tokens import Tokenizer, encode, frame

_BEFORE = "Memorize and track the chains of variable assignment hidden in the following text.\n\n"
_AFTER = "\n\nFind all variables that are assigned the value {value} in the text above."
_ANSWER = (
    "According to the chains of assignment in the text, the {count} variables with the value {value} are:"
)
_LETTERS = 5  # of a variable's name
_RULER_TOKENS = 30


class TrackingParameters(RulerParameters):
    """See the module."""

    hops: PositiveInt = Field(4, description="assignments of a chain that copy another variable")
    chains: PositiveInt = Field(1, description="chains in the text, of which one is asked for")


class VariableTracking(AnswerTask[TrackingParameters]):
    """All variables of one chain."""

    name = "variable_tracking"
    parameters = TrackingParameters

    def item(self, tokenizer: Tokenizer, given: TrackingParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        context, size = given.context, given.hops + 1
        rng = random.Random(f"{self.name}:{context}:{seed}:{index}")
        values = [str(value) for value in rng.sample(range(10_000, 100_000), given.chains)]
        variables = _names(rng, given.chains * size)
        chains = [variables[i * size : (i + 1) * size] for i in range(given.chains)]
        lines = [
            (f" VAR {name} = {value}." if i == 0 else f" VAR {name} = VAR {chain[i - 1]}.", depth)
            for value, chain in zip(values, chains, strict=True)
            for i, (name, depth) in enumerate(zip(chain, sorted(rng.random() for _ in chain), strict=True))
        ]
        head, tail = frame(
            tokenizer, _BEFORE, _AFTER.format(value=values[0]), _ANSWER.format(value=values[0], count=size)
        )
        needles = [encode(tokenizer, line) for line, _ in lines]
        room = context - len(head) - len(tail) - sum(map(len, needles))
        if room < 2 * max(map(len, needles)):
            raise no_room(context, room, self.name)
        passage, starts = hide(draw_passage(tokenizer, rng, room), needles, [depth for _, depth in lines])
        prompt = (*head, *passage, *tail)
        assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
        question = Question(
            index=index,
            prompt=prompt,
            answers=tuple(chains[0]),
            metric="contains",
            max_new_tokens=len(encode(tokenizer, f" {', '.join(chains[0])}.")) + 8,
            about={
                "value": values[0],
                "depths": [round(depth, 2) for _, depth in lines[:size]],
                "needle_tokens": [
                    [len(head) + start, len(head) + start + len(needle)]
                    for start, needle in zip(starts[:size], needles[:size], strict=True)
                ],
            },
        )
        return as_ruler(question, _RULER_TOKENS) if given.as_ruler else question


def _names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(string.ascii_uppercase, k=_LETTERS))] = None
    return list(found)
