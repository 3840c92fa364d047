"""Needle retrieval in the manner of RULER (arXiv 2404.06654): find a number hidden in long text.

`needle_single` hides one number; `needle_multikey` hides distractors of the same form beside it, so that the
model must attend to the right one and not merely to anything that looks like a needle.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from functools import lru_cache

from evaluators.data import sentences, words
from evaluators.errors import no_room
from evaluators.tasks.tokens import Tokenizer, encode, frame

DIGITS = 7
_BEFORE = (
    "A special magic number is hidden in the following text. Read the text and remember the number: "
    "you will be asked for it afterwards.\n\n"
)
_AFTER = "\n\nWhat is the special magic number for {key} mentioned in the text above?"
_ANSWER = "The special magic number for {key} mentioned in the text is"
_NEEDLE = " The special magic number for {key} is: {value}."
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class NeedleItem:
    """One question.

    Attributes:
        task: `needle_single` or `needle_multikey`.
        context: prompt length in tokens, exact.
        index: number of the item; with the task and the seed it determines everything else.
        prompt: token ids, `context` of them; the model continues the assistant's sentence.
        key: what is asked for.
        answer: the hidden digits.
        depth: where the needle lies, 0 (start) to 1 (end).
        needle_start: position of the needle's first token in the prompt.
        needle_end: position after its last token.
        max_new_tokens: enough for the answer in this tokenizer, with a little slack.
    """

    task: str
    context: int
    index: int
    prompt: tuple[int, ...]
    key: str
    answer: str
    depth: float
    needle_start: int
    needle_end: int
    max_new_tokens: int

    def score(self, text: str) -> float:
        """1 if the answer's digits appear in `text` as a number of their own, else 0."""
        numbers = re.findall(r"\d+", text.replace(",", ""))
        return float(self.answer in numbers)


def needle_item(
    tokenizer: Tokenizer, *, task: str, context: int, seed: int, index: int, distractors: int = 0
) -> NeedleItem:
    """Item `index` of a task, a deterministic function of its arguments.

    Depths follow the golden-ratio sequence, so any number of items covers the text evenly.

    Raises:
        VortexError: `VV002` if `context` leaves no room for text around the question and the needles.
    """
    rng = random.Random(f"{task}:{context}:{seed}:{index}")
    keys = _keys(rng, 1 + distractors)
    values = [str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)) for _ in keys]
    head, tail = frame(tokenizer, _BEFORE, _AFTER.format(key=keys[0]), _ANSWER.format(key=keys[0]))
    needles = [
        encode(tokenizer, _NEEDLE.format(key=key, value=value))
        for key, value in zip(keys, values, strict=True)
    ]
    room = context - len(head) - len(tail) - sum(map(len, needles))
    if room < 2 * max(map(len, needles)):
        raise no_room(context, room, task)
    depth = golden_depth(task, context, seed, index)
    depths = [depth, *(rng.random() for _ in range(distractors))]
    passage, start = _hide(_passage(tokenizer, rng, room), needles, depths)
    prompt = (*head, *passage, *tail)
    assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
    return NeedleItem(
        task=task,
        context=context,
        index=index,
        prompt=prompt,
        key=keys[0],
        answer=values[0],
        depth=depth,
        needle_start=len(head) + start,
        needle_end=len(head) + start + len(needles[0]),
        max_new_tokens=len(encode(tokenizer, f" {values[0]}.")) + 4,
    )


def golden_depth(task: str, context: int, seed: int, index: int) -> float:
    """Where the needle of item `index` lies, 0 (start) to 1 (end): steps of the golden ratio from a random place."""
    return ((index + 0.5) * _GOLDEN + random.Random(f"{task}:{context}:{seed}").random()) % 1.0


def _keys(rng: random.Random, count: int) -> list[str]:
    adjectives, nouns = words("adjectives"), words("nouns")
    pairs = zip(rng.sample(adjectives, count), rng.sample(nouns, count), strict=True)
    return [f"{adjective}-{noun}" for adjective, noun in pairs]


@lru_cache(maxsize=4)
def _encoded(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Sentences of the haystack as ids, each with the space that joins it to the one before."""
    return tuple(tuple(encode(tokenizer, f" {sentence}")) for sentence in sentences("haystack"))


def _passage(tokenizer: Tokenizer, rng: random.Random, room: int) -> list[tuple[int, ...]]:
    """Consecutive sentences from a random start, wrapping round; the last is cut so that they fill `room`."""
    corpus = _encoded(tokenizer)
    at = rng.randrange(len(corpus))
    passage: list[tuple[int, ...]] = []
    while room > 0:
        passage.append(corpus[at % len(corpus)][:room])
        room -= len(passage[-1])
        at += 1
    return passage


def _hide(
    passage: list[tuple[int, ...]], needles: list[list[int]], depths: list[float]
) -> tuple[list[int], int]:
    """Insert needles between sentences at their depths; returns the ids and where the first needle starts."""
    total = sum(map(len, passage))
    gaps = [0]
    for sentence in passage[:-1]:  # not behind the last sentence, which is cut short
        gaps.append(gaps[-1] + len(sentence))
    at = [min(range(len(gaps)), key=lambda i, d=d: abs(gaps[i] - d * total)) for d in depths]  # type: ignore[misc]
    ids: list[int] = []
    start = -1
    for i, sentence in enumerate(passage):
        for n, needle in enumerate(needles):
            if at[n] == i:
                start = len(ids) if n == 0 else start
                ids += needle
        ids += sentence
    assert start >= 0
    return ids, start
