"""Recipes made to fit: a step coarser or finer, fewer bytes or more."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

from agents.grammar.recipe import Band, Recipe, altered, legal
from agents.grammar.recipe_draw import settled

Rng = random.Random

_STEPS = 6  # by which what does not fit is made smaller, at most


def fewer_bits(rng: Rng, band: Band) -> Band | None:
    """The band kept by a step more coarsely, None where it is kept by one number a channel already."""
    match band.coder:
        case "int8" | "int4" | "int3":
            less = {"int8": "int4", "int4": "int3", "int3": "int2"}[band.coder]
            planes = 2 if band.coder == "int3" else 3
            return altered(band, coder=rng.choice((less, "signs", "range")), planes=planes)
        case "int2":
            return altered(band, coder="signs", planes=1)
        case "signs" | "range":
            return altered(band, planes=band.planes - 1) if band.planes > 1 else altered(band, coder="mean")
    return None


def more_bits(rng: Rng, band: Band) -> Band | None:
    """The band kept by a step more finely, None where it is kept in eight bits already."""
    match band.coder:
        case "mean":
            return altered(band, coder=rng.choice(("signs", "range")), planes=1)
        case "signs" | "range":
            return altered(band, planes=band.planes + 1) if band.planes < 3 else altered(band, coder="int4")
        case "int2" | "int3" | "int4":
            return altered(band, coder={"int2": "int3", "int3": "int4", "int4": "int8"}[band.coder])
    return None


def lighter(rng: Rng, recipe: Recipe) -> Recipe | None:
    """The recipe with a few bytes less; None where nothing is left to take."""
    found: list[_Step] = [lambda: altered(recipe, norm="int4")]
    for n, b in enumerate(recipe.bands):
        if (less := fewer_bits(rng, b)) is not None:
            found.append(partial(recipe.with_band, n, less))
        found.append(partial(_with, recipe, n, small="int4"))
        if not b.by_token:
            found.append(partial(_with, recipe, n, rows=b.rows // 2))
        if n == 0:  # the fastest pairs say least of far pages
            found += [partial(_with, recipe, n, low=b.low + 1)] * 3
    return _one_of(rng, recipe, found)


def heavier(rng: Rng, recipe: Recipe) -> Recipe | None:
    """The recipe with a few bytes more; None where nothing can be added."""
    found: list[_Step] = []
    for n, b in enumerate(recipe.bands):
        if (more := more_bits(rng, b)) is not None:
            found.append(partial(recipe.with_band, n, more))
        if b.small == "int4":
            found.append(partial(_with, recipe, n, small="int8"))
        before = recipe.bands[n - 1] if n else None
        if before is None or before.high < b.low:
            found += [partial(_with, recipe, n, low=b.low - 1)] * 2
        elif b.by_token:  # at its neighbour's cost
            found.append(partial(_at_its_cost, recipe, n))
    return _one_of(rng, recipe, found)


_Step = Callable[[], Recipe]
"""A recipe that is made when it is looked at: of a dozen one is."""


def _with(recipe: Recipe, n: int, **new: Any) -> Recipe:
    return recipe.with_band(n, altered(recipe.bands[n], **new))


def _at_its_cost(recipe: Recipe, n: int) -> Recipe:
    """A band begins a step lower, where the one before it ends."""
    low = recipe.bands[n].low - 1
    return _with(_with(recipe, n - 1, high=low), n, low=low)


def _one_of(rng: Rng, recipe: Recipe, found: list[_Step]) -> Recipe | None:
    """Any of them that is legal and another one."""
    rng.shuffle(found)
    for step in found:
        one = step()
        if legal(one) and (done := settled(rng, one)) != recipe and legal(done):
            return done
    return None


def sized(rng: Rng, recipe: Recipe, fits: Callable[[Recipe], bool], grow: int) -> Recipe | None:
    """The recipe made smaller until it fits, or larger where it does; None where it cannot be made to fit.

    A change of a program at the bound is mostly a trade: what one band gains another has to give.

    Args:
        fits: whether a recipe is within the bound.
        grow: steps by which it may grow; how many are tried is drawn.
    """
    for _ in range(_STEPS):
        if fits(recipe):
            break
        less = lighter(rng, recipe)
        if less is None:
            return None
        recipe = less
    else:
        return None
    for _ in range(rng.randint(0, grow)):
        more = heavier(rng, recipe)
        if more is None or not fits(more):
            break
        recipe = more
    return recipe
