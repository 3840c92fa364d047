"""Key retrieval in the retrieval model's alphabet (`vortex_core.engine.retrieval`): noise, pairs, one key at the end.

A small model that was trained on nothing else answers it nearly always, so every item tells something, up to the
longest context it was trained on; other models cannot read it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from evaluators.errors import no_room
from evaluators.tasks.needle import NeedleItem, golden_depth
from evaluators.tasks.perplexity import PerplexityItem
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


@dataclass(frozen=True)
class PairItem(NeedleItem):
    """One question; `needle_start` is where the asked key lies, its value behind it."""

    def score(self, text: str) -> float:
        """1 if `text` is the value's word, else 0: a model that lists values does not pass."""
        return float(text.split() == [self.answer])


def pair_item(*, context: int, seed: int, index: int, distractors: int) -> PairItem:
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
    return PairItem(
        task=TASK,
        context=context,
        index=index,
        prompt=tuple(prompt),
        key=words()[keys[0]],
        answer=words()[values[0]],
        depth=depth,
        needle_start=start,
        needle_end=start + 2,
        max_new_tokens=1,
    )


def pair_passage(*, context: int, seed: int, index: int, distractors: int) -> PerplexityItem:
    """A question whose answer's probability is asked for: the only token of such a text that can be known."""
    item = pair_item(context=context, seed=seed + 1, index=-1 - index, distractors=distractors)
    return PerplexityItem(context, index, item.prompt, (words().index(item.answer),))


def reads_pairs(tokenizer: Tokenizer) -> bool:
    """Whether a model with this tokenizer was made for the task."""
    return encode(tokenizer, "k0 v0 n0") == [FIRST_KEY, FIRST_VALUE, FIRST_NOISE]
