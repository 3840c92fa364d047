"""Two hops and counting, in the alphabet of the model `retrieval-gqa` (`vortex_core.engine.retrieval.stories`).

A look-up needs one page of the text. Two hops need two, the second of which only the first names; a count needs every
page on which the pair is written, and a weight for each that is right.
"""

from __future__ import annotations

import random

from pydantic import Field

from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, Question, TaskParameters
from evaluators.tasks.haystack import golden_depth
from evaluators.tasks.pairs import PairParameters
from evaluators.tasks.tokens import Tokenizer, encode
from vortex_core.engine.retrieval.alphabet import (
    BOS,
    COUNT,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_VALUE,
    HOP,
    KEYS,
    MOST,
    VOCAB,
    words,
)


class KeyHop(AnswerTask[PairParameters]):
    """The value of the key that the asked key's value names."""

    name = "key_hop"
    parameters = PairParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_skills(tokenizer)

    def item(self, tokenizer: Tokenizer, given: PairParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`; the first pair lies at a depth that covers the text over the items.

        Raises:
            VortexError: `VV002` if the context leaves no room, or there are not two pairs.
        """
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        depth = golden_depth(self.name, given.context, seed, index)
        pairs = named_pairs(rng, 1 + given.distractors, given.context, self.name)
        text, starts = story(rng, pairs, given.context - 2, self.name, first=depth)
        (key, middle), (_, value) = pairs[:2]
        return Question(
            index=index,
            prompt=(*text, HOP, key),
            answers=(words()[value],),
            metric="exact",
            max_new_tokens=1,
            stops=(),
            about={
                "key": words()[key],
                "through": words()[middle],
                "depth": round(depth, 2),
                "needle_tokens": [starts[0], starts[0] + 2],
                "second_tokens": [starts[1], starts[1] + 2],
            },
        )


class CountParameters(TaskParameters):
    """See `KeyCount`."""

    distractors: int = Field(
        0, ge=0, description="other pairs in the text, a quarter of them written several times too"
    )
    most: int = Field(MOST, ge=2, le=MOST, description="the largest count")


class KeyCount(AnswerTask[CountParameters]):
    """How often the pair of the asked key is written; counts from 1 to `most` come equally often."""

    name = "key_count"
    parameters = CountParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_skills(tokenizer)

    def item(self, tokenizer: Tokenizer, given: CountParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`.

        Raises:
            VortexError: `VV002` if the context leaves no room for the pairs.
        """
        rng = random.Random(f"{self.name}:{given.context}:{seed}:{index}")
        different = 1 + given.distractors
        pairs = named_pairs(rng, different, given.context, self.name)
        several = max(1, different // 4)
        times = [1 + (index + seed) % given.most, *(rng.randint(1, given.most) for _ in range(several - 1))]
        times += [1] * (different - several)
        copies = [pair for pair, n in zip(pairs, times, strict=True) for _ in range(n)]
        text, starts = story(rng, copies, given.context - 2, self.name)
        return Question(
            index=index,
            prompt=(*text, COUNT, pairs[0][0]),
            answers=(f"c{times[0]}",),
            metric="exact",
            max_new_tokens=1,
            stops=(),
            about={"key": words()[pairs[0][0]], "at": sorted(starts[: times[0]])},
        )


def named_pairs(rng: random.Random, count: int, context: int, task: str) -> list[tuple[int, int]]:
    """Pairs of a key and a value, each value naming the key of the next pair and the last one's that of the first.

    Raises:
        VortexError: `VV002` for one pair or more than there are keys.
    """
    if not 2 <= count <= KEYS:
        raise no_room(context, 0, task)
    named = rng.sample(range(KEYS), count)
    return [
        (FIRST_KEY + key, FIRST_VALUE + value)
        for key, value in zip(named, named[1:] + named[:1], strict=True)
    ]


def story(
    rng: random.Random,
    pairs: list[tuple[int, int]],
    length: int,
    task: str,
    *,
    first: float | None = None,
) -> tuple[list[int], list[int]]:
    """Noise of `length` tokens with pairs at random places, and where each pair begins.

    Args:
        first: share of the text before the first pair; None: anywhere.

    Raises:
        VortexError: `VV002` where there is less noise than pairs.
    """
    slots = length - 1 - len(pairs)  # places for a pair or a token of noise
    if slots < 2 * len(pairs):
        raise no_room(length, slots - len(pairs), task)
    chosen: list[int] = []
    if first is not None:
        chosen.append(min(int(first * slots), slots - 1))
    chosen += rng.sample([slot for slot in range(slots) if slot not in chosen], len(pairs) - len(chosen))
    at = dict(zip(chosen, range(len(pairs)), strict=True))
    text, starts = [BOS], [0] * len(pairs)
    for slot in range(slots):
        if slot in at:
            starts[at[slot]] = len(text)
            text += pairs[at[slot]]
        else:
            text.append(rng.randrange(FIRST_NOISE, VOCAB))
    assert len(text) == length, f"{len(text)} tokens, wanted {length}"
    return text, starts


def reads_skills(tokenizer: Tokenizer) -> bool:
    """Whether a model with this tokenizer was made for these tasks."""
    return encode(tokenizer, "k0 v0 n0 hop count") == [FIRST_KEY, FIRST_VALUE, FIRST_NOISE, HOP, COUNT]
