"""Text said again word for word: hundreds of decode steps in English that a small model can do.

The prompt is a long text; asked for is a part of it from a given sentence on, which the answer has begun. Each word is
found behind the one just written, in pages that change as the answer goes on, and a step that misses its page ends the
recital: the model then goes on with words of its own. The score is how far it came.
"""

from __future__ import annotations

import random

from pydantic import Field, PositiveInt

from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import draw_passage, golden_depth
from evaluators.tasks.tokens import Tokenizer, encode, frame

_BEFORE = "Read the following text. You will be asked to repeat a part of it word for word.\n\n"
_AFTER = "\n\nRepeat the text above word for word, beginning with its sentence:{sentence}"
_BEGUN = 3  # tokens of the next sentence that the answer's beginning gives: models stop where a sentence ends


class RecitalParameters(TaskParameters):
    """See the module."""

    tokens: PositiveInt = Field(128, le=2048, description="at least so many are to be said again")


class Recital(AnswerTask[RecitalParameters]):
    """A part of a text, as it stands there."""

    name = "recital"
    parameters = RecitalParameters

    def item(self, tokenizer: Tokenizer, given: RecitalParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        rng = random.Random(f"{self.name}:{given.context}:{given.tokens}:{seed}:{index}")
        head, bare = frame(tokenizer, _BEFORE, _AFTER.format(sentence=""), "")
        room = given.context - len(head) - len(bare)
        passage = draw_passage(tokenizer, rng, max(room, 1))
        depth = golden_depth(self.name, given.context, seed, index)
        starts = [sum(map(len, passage[:i])) for i in range(len(passage) + 1)]
        # Sentences that the question leaves in place, with what is to be said behind them; the last may be cut.
        possible = []
        for i, part in enumerate(passage[:-1]):
            said = next(
                (k for k in range(i + 2, len(passage)) if starts[k] - starts[i + 1] >= given.tokens), None
            )
            if said is not None and starts[said] + 2 * len(part) + 8 <= room:
                possible.append((i, said))
        if not possible:
            raise no_room(given.context, room, self.name)
        first, end = possible[min(len(possible) - 1, int(depth * len(possible)))]
        sentence = tokenizer.decode(list(passage[first]))
        begun = tokenizer.decode([*passage[first], *passage[first + 1][:_BEGUN]]).strip()
        head, tail = frame(tokenizer, _BEFORE, _AFTER.format(sentence=sentence), begun)
        ids = [token for part in passage for token in part][: given.context - len(head) - len(tail)]
        prompt = (*head, *ids, *tail)
        wanted = tokenizer.decode([token for part in passage[first + 1 : end] for token in part][_BEGUN:])
        if len(prompt) != given.context or len(ids) < starts[end]:
            raise no_room(given.context, room, self.name)
        return Question(
            index=index,
            prompt=prompt,
            answers=(" ".join(wanted.split()),),
            metric=how_far,
            max_new_tokens=len(encode(tokenizer, wanted)) + 8,
            stops=("\n",),
            about={
                "begun": begun,
                "tokens": starts[end] - starts[first + 1],
                "needle_tokens": [len(head) + starts[first], len(head) + starts[end]],
            },
        )

    def decoded(self, given: RecitalParameters) -> tuple[int, int]:
        """See `AnswerTask`: what is to be said, to the end of its last sentence."""
        return 1, given.tokens + 256


def how_far(text: str, answers: tuple[str, ...]) -> float:
    """The share of the wanted words that a text says before it departs from them, white space aside."""
    wanted, said = answers[0].split(), text.split()
    right = next(
        (i for i, (a, b) in enumerate(zip(wanted, said, strict=False)) if a != b), min(len(wanted), len(said))
    )
    return right / len(wanted)
