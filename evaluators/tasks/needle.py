"""Needle retrieval in the manner of RULER (arXiv 2404.06654): find a number hidden in long text.

`needle_single` hides one number; `needle_multikey` hides distractors of the same form beside it, so that the
model must attend to the right one and not merely to anything that looks like a needle. With `distractors: fill` there
are needles alone. Values, and keys among distractors, may be uuids; the text around a single needle may be a few
sentences over and over.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveInt

from evaluators.data import words
from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import draw_keys, draw_passage, golden_depth, hide
from evaluators.tasks.tokens import Tokenizer, encode, frame

DIGITS = 7
NEEDLE = " The special magic number for {key} is: {value}."
_BEFORE = (
    "A special magic {kind} is hidden in the following text. Read the text and remember the {kind}: "
    "you will be asked for it afterwards.\n\n"
)
_AFTER = "\n\nWhat is the special magic {kind} for {key} mentioned in the text above?"
_ANSWER = "The special magic {kind} for {key} mentioned in the text is"
_NOISE = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

Words = Literal["words", "uuids"]
Values = Literal["numbers", "uuids"]


class SingleParameters(TaskParameters):
    """See `NeedleSingle`."""

    haystack: Literal["speeches", "noise"] = Field(
        "speeches", description="what hides the needle; noise: a few sentences over and over"
    )
    values: Values = Field("numbers", description="what is hidden")


class NeedleSingle(AnswerTask[SingleParameters]):
    """One number, nothing like it beside it."""

    name = "needle_single"
    parameters = SingleParameters

    def item(self, tokenizer: Tokenizer, given: SingleParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        return needle_item(
            tokenizer,
            task=self.name,
            context=given.context,
            seed=seed,
            index=index,
            values=given.values,
            noise=given.haystack == "noise",
        )


class MultikeyParameters(TaskParameters):
    """See `NeedleMultikey`."""

    distractors: PositiveInt | Literal["fill"] = Field(
        description="needles of the same form with other keys; fill: the text consists of them"
    )
    keys: Words = Field("words", description="what the needles are asked by")
    values: Values = Field("numbers", description="what is hidden")


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
            keys=given.keys,
            values=given.values,
        )


def needle_item(
    tokenizer: Tokenizer,
    *,
    task: str,
    context: int,
    seed: int,
    index: int,
    distractors: int | Literal["fill"] = 0,
    keys: Words = "words",
    values: Values = "numbers",
    noise: bool = False,
) -> Question:
    """Item `index` of a task, a deterministic function of its arguments.

    `about` has the key, the needle's depth (0 to 1) and its first and last position plus one in the prompt.

    Raises:
        VortexError: `VV002` if `context` leaves no room for text around the question and the needles.
    """
    plain = (keys, values, noise) == ("words", "numbers", False) and distractors != "fill"
    kind_of = "" if plain else f"{keys}:{values}:{noise}:{distractors}:"
    rng = random.Random(f"{task}:{kind_of}{context}:{seed}:{index}")
    count = 1 if distractors == "fill" else 1 + distractors
    asked = draw_keys(rng, count) if keys == "words" else [_uuid(rng) for _ in range(count)]
    hidden = [_value(rng, values) for _ in asked]
    kind = "number" if values == "numbers" else "uuid"
    before, after, start = (text.format(kind=kind, key=asked[0]) for text in (_BEFORE, _AFTER, _ANSWER))
    head, tail = frame(tokenizer, before, after, start)
    needles = [_needle(tokenizer, kind, key, value) for key, value in zip(asked, hidden, strict=True)]
    room = context - len(head) - len(tail) - sum(map(len, needles))
    if room < 2 * max(map(len, needles)):
        raise no_room(context, room, task)
    depth = golden_depth(task, context, seed, index)
    depths = [depth, *(rng.random() for _ in needles[1:])]
    if distractors == "fill":
        text = _needles_alone(tokenizer, rng, room, asked[0], keys, values)
    else:
        text = _repeated(tokenizer, room) if noise else draw_passage(tokenizer, rng, room)
    passage, starts = hide(text, needles, depths)
    prompt = (*head, *passage, *tail)
    assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
    begin = len(head) + starts[0]
    return Question(
        index=index,
        prompt=prompt,
        answers=(hidden[0],),
        metric="number" if values == "numbers" else "contains",
        max_new_tokens=len(encode(tokenizer, f" {hidden[0]}.")) + 4,
        about={"key": asked[0], "depth": round(depth, 2), "needle_tokens": [begin, begin + len(needles[0])]},
    )


def draw_number(rng: random.Random) -> str:
    """A number to hide, `DIGITS` digits."""
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _value(rng: random.Random, values: Values) -> str:
    return draw_number(rng) if values == "numbers" else _uuid(rng)


def _needle(tokenizer: Tokenizer, kind: str, key: str, value: str) -> list[int]:
    return encode(tokenizer, NEEDLE.replace("number", kind).format(key=key, value=value))


def _repeated(tokenizer: Tokenizer, room: int) -> list[tuple[int, ...]]:
    """The same sentences again and again; the last are cut so that they fill `room` tokens."""
    return _cut([tuple(encode(tokenizer, _NOISE))] * room, room)


def _needles_alone(
    tokenizer: Tokenizer, rng: random.Random, room: int, asked: str, keys: Words, values: Values
) -> list[tuple[int, ...]]:
    """Needles of other keys, none twice; the last is cut, so that they fill `room` tokens."""
    pairs = [f"{a}-{n}" for a in words("adjectives") for n in words("nouns")] if keys == "words" else []
    rng.shuffle(pairs)
    kind = "number" if values == "numbers" else "uuid"
    found: list[tuple[int, ...]] = []
    left = room
    while left > 0:
        if keys == "words" and not pairs:
            raise no_room(room, 0, "needle_multikey of different keys alone")
        key = pairs.pop() if keys == "words" else _uuid(rng)
        if key != asked:
            found.append(tuple(_needle(tokenizer, kind, key, _value(rng, values))))
            left -= len(found[-1])
    return _cut(found, room)


def _cut(pieces: Sequence[tuple[int, ...]], room: int) -> list[tuple[int, ...]]:
    found = []
    for piece in pieces:
        found.append(piece[:room])
        room -= len(found[-1])
        if room == 0:
            break
    return found
