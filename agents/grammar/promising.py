"""Many children drafted as recipes, in the order of what they promise.

What one change is worth depends on what is there already, so that a change drawn at random mostly loses. Where enough
recipes were measured, a surrogate says which of a hundred changes of the best so far is worth a screen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from agents.base import ProposalRequest
from agents.grammar import recipe_draw, recipe_moves, recipe_sizes
from agents.grammar.recipe import Recipe, parse
from agents.grammar.recipe_bytes import fits_room
from agents.grammar.recipe_draw import Taste
from agents.grammar.surrogate import Surrogate

ENOUGH = 24
"""Measured recipes from which on a surrogate is asked."""
_POOL = 128
_TOP = 16  # of the measured, which children start from beside the parents
_EAGER = (0.3, 1.0, 2.0, 3.0)
"""Deviations by which a draft may be better than expected, drawn for each ask."""
_OWN = 0.5
"""Share of asks whose drafts are all of the parents: the best of one sort must not end all others."""


class Promising:
    """Drafts for requests that say what was measured. The surrogate is kept from one request to the next.

    Args:
        pool: drafts that one is chosen from.
    """

    def __init__(self, pool: int = _POOL) -> None:
        self.pool = pool
        self._of: tuple[tuple[Recipe, float], ...] = ()
        self._surrogate: Surrogate | None = None

    def drafts(
        self, rng: random.Random, request: ProposalRequest, parents: Sequence[Recipe], taste: Taste
    ) -> Iterator[tuple[Recipe, str]]:
        """Recipes that fit the campaign's room, in words, the most promising first; none where too little is known.

        Args:
            parents: recipes of the request's parents; without any the drafts are drawn from nothing.
        """
        room = request.room
        measured = _recipes(request.measured)
        if room is None or len(measured) < ENOUGH:
            return
        surrogate = self._learned(measured)
        top = [r for r, _ in sorted(measured, key=lambda m: -m[1])[:_TOP]]
        known = {r for r, _ in measured}
        found: dict[Recipe, str] = {}
        own = rng.random() < _OWN
        for _ in range(self.pool):
            child = self._child(rng, parents, parents if own else top, measured, taste)
            if child is None:
                continue
            sized = recipe_sizes.sized(rng, child[0], lambda r: fits_room(r, room), rng.choice((0, 1, 3, 6)))
            if sized is not None and (sized := sized.normal()) not in known:
                found.setdefault(sized, child[1])
        if not found:
            return
        mean, deviation = surrogate.expects(list(found))
        promise = mean + rng.choice(_EAGER) * deviation
        order = sorted(zip(promise.tolist(), found.items(), strict=True), key=lambda p: -p[0])
        yield from (item for _, item in order)

    @staticmethod
    def _child(
        rng: random.Random,
        parents: Sequence[Recipe],
        others: Sequence[Recipe],
        measured: Sequence[tuple[Recipe, float]],
        taste: Taste,
    ) -> tuple[Recipe, str] | None:
        """A change of a parent or of another good one, or what two have together; without parents one from nothing."""
        if not parents or (others is not parents and rng.random() < 0.15):
            return recipe_draw.draw(rng, taste), "drawn"
        first = rng.choice(parents) if rng.random() < 0.3 else rng.choice(others)
        child, what = first, ""
        if rng.random() < 0.25:
            second = rng.choice(others) if rng.random() < 0.5 else rng.choice(measured)[0]
            child, what = recipe_moves.cross(rng, first, second)
        for _ in range(rng.choice((0, 1) if what else (1, 1, 2, 3))):
            more = recipe_moves.mutate(rng, child, taste)
            if more is not None:
                child, what = more[0], f"{what}, {more[1]}" if what else more[1]
        return (child, what) if what else None

    def _learned(self, measured: Sequence[tuple[Recipe, float]]) -> Surrogate:
        """What the recipes say, but for the last few: equal requests are to give equal drafts, whatever came before."""
        step = max(1, min(16, len(measured) // 12))
        seen = tuple(measured[: len(measured) - len(measured) % step])
        if self._surrogate is None or seen != self._of:
            self._of, self._surrogate = seen, Surrogate(seen)
        return self._surrogate


def _recipes(measured: Sequence[tuple[str, float]]) -> list[tuple[Recipe, float]]:
    found = ((_parsed(text), value) for text, value in measured)
    return [(recipe, value) for recipe, value in found if recipe is not None]


@lru_cache(maxsize=20_000)
def _parsed(text: str) -> Recipe | None:
    found = parse(text)
    return None if found is None else found.normal()
