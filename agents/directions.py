"""Where to look next. Asked twice the same question, a model tends to give the same answer; a rotating
direction spreads its answers. The mechanisms are those that published selectors build on."""

from __future__ import annotations

from collections.abc import Collection

SEED_DIRECTIONS = (
    "one vector per page, as narrow as will do, and a dot product with the query",
    "an upper bound of q·k over the page from per-channel extrema",
    "several representatives per page (sub-pages), scored by their best",
    "a mean corrected by the spread of the keys in the page",
    "keys weighted by the size of their values, because mass on small values changes little",
    "only the channels that carry routing; leave out the rest of the state",
    "state in fewer bits, and the bytes saved spent on more channels, more rows or a better score",
    "neighbouring pages: smooth or sharpen scores along the sequence before selecting",
    "scores normalised per head before heads are combined, so that no loud head decides for the others",
    "a selection that follows the score's own concentration instead of a fixed count",
    "a budget that differs by layer or grows slowly with length",
    "two cheap signals that fail in different places, combined",
)

MOVES = (
    "sharpen the score and keep the state as it is",
    "make the state narrower or coarser and see whether recall holds",
    "lower the budget where the score is already sharp (by layer or by length)",
    "combine heads differently (max, mean, normalised sum)",
    "add one signal that catches what the worst case misses",
    "replace the reduction inside the page by one that keeps more of what the query asks for",
    "change the page size together with the budget",
    "use what neighbouring pages say",
    "take something out: the smallest program with the same selection is the faster one",
)


def direction(kind: str, seed: int, given: Collection[str] = ()) -> str:
    """The direction for one request; it rotates with the seed. Empty where the request says what to do.

    Args:
        given: knobs that are not the author's to choose: no direction is about them.
    """
    choices = {"seed": SEED_DIRECTIONS, "mutate": MOVES, "diff": MOVES}.get(kind, ())
    if "budget" in given:
        choices = tuple(text for text in choices if "budget" not in text)
    return choices[seed % len(choices)] if choices else ""
