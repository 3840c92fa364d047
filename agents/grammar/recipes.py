"""Drafts by recipe: what the proposer does with programs of the family of `agents.grammar.recipe`."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache

from agents.grammar import recipe_moves
from agents.grammar.recipe import Band, Recipe, parse
from agents.grammar.recipe_draw import Taste
from agents.grammar.recipe_terms import program_of
from agents.grammar.term import to_program
from vortex_core import library
from vortex_core.ir.flow import Flow
from vortex_core.ir.program import Program

_KNOWN = 20_000
"""Programs whose recipe is remembered: writing one again to compare hashes takes as long as proposing it did."""

# Programs of the library that are of the family but for the names of dimensions: the search may begin at them.
CLASSICS = {
    "quest": Recipe((Band(0, 16, "extrema", small="bf16"),), pool="max", heads="amax"),
    "block_topk": Recipe((Band(0, 16, "mean", small="bf16"),), pool="max", heads="amax"),
}


class RecipeBook:
    """Which recipe a program was written by. A text is never believed: the program it writes must be the same one."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Recipe | None] = OrderedDict()
        self._classics = False

    def of(self, flow: Flow) -> Recipe | None:
        """The recipe of a flow, None where it has none."""
        if not self._classics:
            self._classics = True
            for name, recipe in CLASSICS.items():
                self.note(library.load(name).flow.ir_hash, recipe.normal())
        if flow.ir_hash not in self._known:
            said = parse(flow.doc)
            same = said is not None and written(said).ir_hash == flow.ir_hash
            self.note(flow.ir_hash, said if same else None)
        return self._known[flow.ir_hash]

    def note(self, ir_hash: str, recipe: Recipe | None) -> None:
        """Remember that a program is of a recipe, or of none."""
        self._known[ir_hash] = recipe
        if len(self._known) > _KNOWN:
            self._known.popitem(last=False)


def written(recipe: Recipe) -> Program:
    """The program of a recipe, not canonical.

    Raises:
        VortexError: it is larger than the language allows.
    """
    return _written(recipe.normal())


@lru_cache(maxsize=256)  # half of what is drafted was drafted before, and its canonical form costs most
def _written(recipe: Recipe) -> Program:
    return to_program(program_of(recipe))


def taste_of(texts: Iterable[str]) -> Taste:
    """What the best so far have in common, by their descriptions."""
    found = (parse(text) for text in texts)
    return Taste(tuple(r for r in found if r is not None))


def varied(rng: random.Random, parents: list[Recipe | None], taste: Taste) -> tuple[Recipe, str] | None:
    """A child of recipes, in words; None where it is left to the grammar of terms."""
    first = parents[0]
    if first is None or rng.random() < 0.15:
        return None
    if len(parents) > 1:
        second = parents[1]
        if second is None:
            return None
        child, what = recipe_moves.cross(rng, first, second)
        if child in (first, second) or rng.random() < 0.3:
            more = recipe_moves.mutate(rng, child, taste)
            if more is not None:
                child, what = more[0], f"{what}, {more[1]}"
        return child, what
    return recipe_moves.mutate(rng, first, taste)
