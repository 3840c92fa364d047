"""Key retrieval in the retrieval model's alphabet (`vortex_core.engine.retrieval`): noise, pairs, one key at the end.

A small model that was trained on nothing else answers it nearly always, so every item tells something, up to the
longest context it was trained on; other models cannot read it.
"""

from __future__ import annotations

import random

from pydantic import Field

from evaluators.errors import no_room
from evaluators.tasks.base import AnswerTask, LikelihoodTask, Passage, Question, TaskParameters
from evaluators.tasks.haystack import golden_depth
from evaluators.tasks.tokens import Tokenizer, encode
from vortex_core.engine.retrieval.alphabet import (
    BOS,
    FIRST_KEY,
    FIRST_NOISE,
    FIRST_VALUE,
    KEYS,
    VALUES,
    VOCAB,
    words,
)

TASK = "pair_recall"


class PairParameters(TaskParameters):
    """See the module."""

    distractors: int = Field(0, ge=0, description="other pairs in the text")


class PairRecall(AnswerTask[PairParameters]):
    """The value of the key that ends the text."""

    name = TASK
    parameters = PairParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_pairs(tokenizer)

    def item(self, tokenizer: Tokenizer, given: PairParameters, seed: int, index: int) -> Question:
        """See `AnswerTask`."""
        return pair_item(context=given.context, seed=seed, index=index, distractors=given.distractors)


class PairAnswers(LikelihoodTask[PairParameters]):
    """The probability of the value: the only token of such a text that can be known."""

    name = "pair_answers"
    parameters = PairParameters

    def reads(self, tokenizer: Tokenizer) -> bool:
        """See `Task`."""
        return reads_pairs(tokenizer)

    def continuation(self, given: PairParameters) -> int:
        """See `LikelihoodTask`."""
        return 1

    def item(self, tokenizer: Tokenizer, given: PairParameters, seed: int, index: int) -> Passage:
        """Questions that `PairRecall` does not ask with the same seed."""
        item = pair_item(
            context=given.context, seed=seed + 1, index=-1 - index, distractors=given.distractors
        )
        return Passage(index, item.prompt, (words().index(item.answers[0]),))


def pair_item(*, context: int, seed: int, index: int, distractors: int) -> Question:
    """Item `index` of the task, a deterministic function of its arguments; all values in it differ.

    Raises:
        VortexError: `VV002` if `context` leaves no room for noise around the pairs.
    """
    rng = random.Random(f"{TASK}:{context}:{seed}:{index}")
    pairs = 1 + distractors
    # Places for a pair or a token of noise: all but the first token, the key asked, and the pairs' second tokens.
    slots = context - 2 - pairs
    if slots < 2 * pairs or pairs > KEYS:
        raise no_room(context, slots - pairs, TASK)
    keys = rng.sample(range(FIRST_KEY, FIRST_KEY + KEYS), pairs)
    values = rng.sample(range(FIRST_VALUE, FIRST_VALUE + VALUES), pairs)
    depth = golden_depth(TASK, context, seed, index)
    needle = min(int(depth * slots), slots - 1)
    others = rng.sample([slot for slot in range(slots) if slot != needle], distractors)
    holds = dict(zip((needle, *others), zip(keys, values, strict=True), strict=True))
    prompt = [BOS]
    start = 0
    for slot in range(slots):
        start = len(prompt) if slot == needle else start
        prompt += holds.get(slot, (rng.randrange(FIRST_NOISE, VOCAB),))
    prompt.append(keys[0])
    assert len(prompt) == context, f"prompt of {len(prompt)} tokens, wanted {context}"
    return Question(
        index=index,
        prompt=tuple(prompt),
        answers=(words()[values[0]],),
        metric="exact",
        max_new_tokens=1,
        stops=(),
        about={"key": words()[keys[0]], "depth": round(depth, 2), "needle_tokens": [start, start + 2]},
    )


def reads_pairs(tokenizer: Tokenizer) -> bool:
    """Whether a model with this tokenizer was made for the task."""
    return encode(tokenizer, "k0 v0 n0") == [FIRST_KEY, FIRST_VALUE, FIRST_NOISE]
