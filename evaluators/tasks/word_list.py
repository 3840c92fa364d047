"""What tasks about the words of a list share: a list of exact length, every word of a known count."""

from __future__ import annotations

import random
from collections.abc import Sequence

from evaluators.errors import no_room
from evaluators.tasks.tokens import Tokenizer, encode


def fill(
    tokenizer: Tokenizer,
    rng: random.Random,
    task: str,
    context: int,
    room: int,
    rounds: Sequence[Sequence[str]],
) -> list[int]:
    """Ids of a shuffled list that takes exactly `room` tokens.

    Args:
        rounds: words to put in, round by round; whole rounds are taken while they fit, so that counts keep their
            proportions. The tokens left over are filled by spaces, which no count sees.

    Raises:
        VortexError: `VV002` if not even the first round fits.
    """
    chosen: list[list[int]] = []
    left = room
    for words in rounds:
        ids = [encode(tokenizer, f" {word}") for word in words]
        if sum(map(len, ids)) > left:
            break
        chosen += ids
        left -= sum(map(len, ids))
    if not chosen:
        raise no_room(context, room, task)
    rng.shuffle(chosen)
    return [token for ids in chosen for token in ids] + _blank(tokenizer, left)


def _blank(tokenizer: Tokenizer, count: int) -> list[int]:
    """`count` tokens of white space."""
    newline = encode(tokenizer, "\n")
    assert len(newline) == 1, "a tokenizer whose line break is one token"
    return newline * count
