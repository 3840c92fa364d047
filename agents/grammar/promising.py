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
_POOL = 160
_TOP = 16  # of the measured, which children start from beside the parents
_EAGER = (
    0.0,
    0.3,
    0.6,
    1.0,
    2.0,
)  # deviations by which a draft may be better than expected, drawn for each ask


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
        for _ in range(self.pool):
            child = _child(rng, parents, top, taste) if parents else (recipe_draw.draw(rng, taste), "drawn")
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

    def _learned(self, measured: Sequence[tuple[Recipe, float]]) -> Surrogate:
        """What the recipes say, but for the last few: equal requests are to give equal drafts, whatever came before."""
        step = max(1, min(16, len(measured) // 12))
        seen = tuple(measured[: len(measured) - len(measured) % step])
        if self._surrogate is None or seen != self._of:
            self._of, self._surrogate = seen, Surrogate(seen)
        return self._surrogate


def _child(
    rng: random.Random, parents: Sequence[Recipe], top: Sequence[Recipe], taste: Taste
) -> tuple[Recipe, str] | None:
    """A change of a parent or of one of the best, or what two of them have together."""
    first = rng.choice(parents) if rng.random() < 0.4 else top[min(int(rng.expovariate(0.3)), len(top) - 1)]
    if rng.random() < 0.25:
        child, what = recipe_moves.cross(rng, first, rng.choice(top))
        if rng.random() < 0.5:
            return child, what
        more = recipe_moves.mutate(rng, child, taste)
        return (child, what) if more is None else (more[0], f"{what}, {more[1]}")
    return recipe_moves.mutate(rng, first, taste)


def _recipes(measured: Sequence[tuple[str, float]]) -> list[tuple[Recipe, float]]:
    found = ((_parsed(text), value) for text, value in measured)
    return [(recipe, value) for recipe, value in found if recipe is not None]


@lru_cache(maxsize=20_000)
def _parsed(text: str) -> Recipe | None:
    found = parse(text)
    return None if found is None else found.normal()
