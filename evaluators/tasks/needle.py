"""Needle retrieval in the manner of RULER (arXiv 2404.06654): find a number hidden in long text.

`needle_single` hides one number; `needle_multikey` hides distractors of the same form beside it, so that the
model must attend to the right one and not merely to anything that looks like a needle.
"""

from __future__ import annotations

import random

from pydantic import Field, PositiveInt

from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import draw_keys, draw_passage, golden_depth, hide
from evaluators.tasks.tokens import Tokenizer, encode, frame

DIGITS = 7
NEEDLE = " The special magic number for {key} is: {value}."
_BEFORE = (
    "A special magic number is hidden in the following text. Read the text and remember the number: "
    "you will be asked for it afterwards.\n\n"
)
_AFTER = "\n\nWhat is the special magic number for {key} mentioned in the text above?"
_ANSWER = "The special magic number for {key} mentioned in the text is"


class NeedleSingle(AnswerTask[TaskParameters]):
    """One number, nothing like it beside it."""

    name = "needle_single"
    parameters = TaskParameters

    def item(self, tokenizer: Tokenizer, given: TaskParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        return needle_item(tokenizer, task=self.name, context=given.context, seed=seed, index=index)


class MultikeyParameters(TaskParameters):
    """See `NeedleMultikey`."""

    distractors: PositiveInt = Field(description="needles of the same form with other keys")


class NeedleMultikey(AnswerTask[MultikeyParameters]):
    """One number among others of the same form."""

    name = "needle_multikey"
    parameters = MultikeyParameters

    def item(self, tokenizer: Tokenizer, given: MultikeyParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        return needle_item(
            tokenizer,
            task=self.name,
            context=given.context,
            seed=seed,
            index=index,
            distractors=given.distractors,
        )


def needle_item(
    tokenizer: Tokenizer, *, task: str, context: int, seed: int, index: int, distractors: int = 0
) -> Question:
    """Item `index` of a task, a deterministic function of its arguments.

    `about` has the key, the needle's depth (0 to 1) and its first and last position plus one in the prompt.

    Raises:
        VortexError: `VV002` if `context` leaves no room for text around the question and the needles.
    """
    rng = random.Random(f"{task}:{context}:{seed}:{index}")
    keys = draw_keys(rng, 1 + distractors)
    values = [draw_number(rng) for _ in keys]
    head, tail = frame(tokenizer, _BEFORE, _AFTER.format(key=keys[0]), _ANSWER.format(key=keys[0]))
    needles = [
        encode(tokenizer, NEEDLE.format(key=key, value=value))
        for key, value in zip(keys, values, strict=True)
    ]
    room = context - len(head) - len(tail) - sum(map(len, needles))
    if room < 2 * max(map(len, needles)):
        raise no_room(context, room, task)
    depth = golden_depth(task, context, seed, index)
    depths = [depth, *(rng.random() for _ in range(distractors))]
    passage, starts = hide(draw_passage(tokenizer, rng, room), needles, depths)
    prompt = (*head, *passage, *tail)
    assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
    start = len(head) + starts[0]
    return Question(
        index=index,
        prompt=prompt,
        answers=(values[0],),
        metric="number",
        max_new_tokens=len(encode(tokenizer, f" {values[0]}.")) + 4,
        about={"key": keys[0], "depth": round(depth, 2), "needle_tokens": [start, start + len(needles[0])]},
    )


def draw_number(rng: random.Random) -> str:
    """A number to hide, `DIGITS` digits."""
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))
