"""Recipes changed a little, crossed, and made smaller; what is changed leans towards what did well."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agents.grammar.recipe import FACTORS, LEADS, MAX_PLANES, STEPS, Band, Recipe, altered, legal
from agents.grammar.recipe_draw import (
    CENTRES,
    CODERS,
    HEADS,
    NORMS,
    PLANES,
    POOLS,
    SMALL,
    Taste,
    draw_band,
    place,
    settled,
)  # fmt: skip
from agents.grammar.recipe_sizes import fewer_bits, more_bits

Rng = random.Random

_SLIGHT = (0.8, 0.9, 0.95, 1.05, 1.1, 1.25)


# ---- changes ---------------------------------------------------------------------------------------------


def mutate(rng: Rng, recipe: Recipe, taste: Taste) -> tuple[Recipe, str] | None:
    """One to three things changed, in words; None where nothing came of it."""
    done: list[str] = []
    for _ in range(rng.choices((1, 2, 3), (6, 3, 1))[0]):
        for _ in range(8):
            move = rng.choices(list(MOVES), list(MOVES.values()))[0]
            found = move(rng, recipe, taste)
            if found is None:
                continue
            changed = settled(rng, found[0])
            if changed != recipe and legal(changed):
                recipe = changed
                done.append(found[1])
                break
    return (recipe, ", ".join(done)) if done else None


Changed = tuple[Recipe, str] | None


def move_edge(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """An edge of a band moves, and that of its neighbour with it."""
    at = rng.randrange(len(recipe.bands))
    band, step = recipe.bands[at], rng.choice((-2, -1, -1, 1, 1, 2))
    bands = list(recipe.bands)
    if rng.random() < 0.5:
        bands[at] = altered(band, low=band.low + step)
        if at and bands[at - 1].high == band.low:
            bands[at - 1] = altered(bands[at - 1], high=band.low + step)
    else:
        bands[at] = altered(band, high=band.high + step)
        if at + 1 < len(bands) and bands[at + 1].low == band.high:
            bands[at + 1] = altered(bands[at + 1], low=band.high + step)
    return altered(recipe, bands=tuple(bands)), f"band {band.low}-{band.high} cut elsewhere"


def change_coder(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band is kept in another way."""
    at = rng.randrange(len(recipe.bands))
    band = recipe.bands[at]
    coder, planes = (
        taste.pick(rng, place(name, band.low, band.high), weights)
        for name, weights in (("coder", CODERS), ("planes", PLANES))
    )
    new = altered(band, coder=coder, planes=planes)
    return recipe.with_band(at, new), f"band {band.low}-{band.high}: {band.coder} -> {new.coder}"


def change_planes(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A plane of bits more or less."""
    places = [n for n, b in enumerate(recipe.bands) if b.coder in ("signs", "range")]
    if not places:
        return None
    at = rng.choice(places)
    band = recipe.bands[at]
    planes = min(MAX_PLANES, max(1, band.planes + rng.choice((-1, 1))))
    factors = (*band.factors[: band.planes], *FACTORS[band.planes :])
    return recipe.with_band(at, altered(band, planes=planes, factors=factors)), f"{planes} planes"


def change_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """Centre, scale, dtype or parts of a band."""
    at = rng.randrange(len(recipe.bands))
    band = recipe.bands[at]
    match rng.choice(("centre", "scaled", "small", "per_channel", "rows")):
        case "centre":
            new = altered(band, centre=taste.pick(rng, place("centre", band.low, band.high), CENTRES))
        case "scaled":
            new = altered(band, scaled=not band.scaled)
        case "small":
            new = altered(band, small=taste.pick(rng, place("small", band.low, band.high), SMALL))
        case "per_channel":
            new = altered(band, per_channel=not band.per_channel)
        case _:
            new = altered(band, rows=rng.choice((1, 2, 4)))
    return recipe.with_band(at, new), f"band {band.low}-{band.high} kept otherwise"


def _cut(rng: Rng, recipe: Recipe) -> tuple[int, Band, int] | None:
    """A band that can become two, its number, and where it is cut."""
    places = [n for n, b in enumerate(recipe.bands) if b.high - b.low > 1]
    if not places or len(recipe.bands) > 3:
        return None
    at = rng.choice(places)
    band = recipe.bands[at]
    return at, band, rng.randrange(band.low + 1, band.high)


def split_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band becomes two, one of them kept in another way."""
    if (found := _cut(rng, recipe)) is None:
        return None
    at, band, cut = found
    halves = [altered(band, high=cut), altered(band, low=cut)]
    which = rng.randrange(2)
    halves[which] = draw_band(rng, taste, halves[which].low, halves[which].high)
    bands = (*recipe.bands[:at], *halves, *recipe.bands[at + 1 :])
    return altered(recipe, bands=bands), f"band {band.low}-{band.high} in two"


def grade_bits(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """The faster part of a band is kept more coarsely, or the slower part more finely."""
    if (found := _cut(rng, recipe)) is None:
        return None
    at, band, cut = found
    fast, slow = altered(band, high=cut), altered(band, low=cut)
    if rng.random() < 0.5:
        fast = fewer_bits(rng, fast) or fast
    else:
        slow = more_bits(rng, slow) or slow
    bands = (*recipe.bands[:at], fast, slow, *recipe.bands[at + 1 :])
    return altered(recipe, bands=bands), f"band {band.low}-{band.high} graded at {cut}"


def shift_bits(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band is kept more finely or more coarsely."""
    at = rng.randrange(len(recipe.bands))
    new = rng.choice((fewer_bits, more_bits))(rng, recipe.bands[at])
    return None if new is None else (recipe.with_band(at, new), f"band {new.low}-{new.high} in other bits")


def drop_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band is left out, or taken in by its neighbour."""
    if len(recipe.bands) == 1:
        return None
    at = rng.randrange(len(recipe.bands))
    band = recipe.bands[at]
    bands = [b for n, b in enumerate(recipe.bands) if n != at]
    if rng.random() < 0.6:
        n = max(0, at - 1)
        near = bands[n]
        bands[n] = altered(near, low=min(near.low, band.low), high=max(near.high, band.high))
    return altered(recipe, bands=tuple(bands)), f"without band {band.low}-{band.high}"


def add_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """Pairs that were left out come in."""
    taken = {n for b in recipe.bands for n in range(b.low, b.high)}
    free = [n for n in range(STEPS) if n not in taken]
    if not free or len(recipe.bands) > 3:
        return None
    high = max(free) + 1
    low = high - 1
    while low - 1 in free and rng.random() < 0.8:
        low -= 1
    return altered(
        recipe, bands=(*recipe.bands, draw_band(rng, taste, low, high))
    ), f"band {low}-{high} added"


def change_whole(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """Pooling, heads, the tokens' scale, rounding."""
    name = rng.choice(("pool", "heads", "norm", "fitted", "lead", "closed", "variance"))
    value: Any
    match name:
        case "pool":
            value = taste.pick(rng, name, POOLS)
        case "heads":
            value = taste.pick(rng, name, HEADS)
        case "norm":
            value = taste.pick(rng, name, NORMS)
        case "lead":
            value = rng.choice(LEADS)
        case "variance":
            value = rng.choice((0.0, 0.25, 0.5, 1.0))
        case _:
            value = not getattr(recipe, name)
    return altered(recipe, **{name: value}), f"{name} {value}"


def move_constant(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A constant moves a little."""
    values = constants(recipe)
    name = rng.choice(sorted(values))
    return with_constants(recipe, {name: values[name] * rng.choice(_SLIGHT)}), f"{name} moved"


MOVES: dict[Callable[[Rng, Recipe, Taste], Changed], float] = {
    move_edge: 3.0,
    change_coder: 2.0,
    change_planes: 1.0,
    change_band: 3.0,
    split_band: 0.5,
    grade_bits: 1.5,
    shift_bits: 1.5,
    drop_band: 1.0,
    add_band: 1.0,
    change_whole: 2.0,
    move_constant: 2.0,
}


# ---- constants -------------------------------------------------------------------------------------------


def constants(recipe: Recipe) -> dict[str, float]:
    """The numbers of a recipe, by name, the temperature always among them."""
    found = {"temperature": recipe.temperature}
    if recipe.variance:
        found["variance"] = recipe.variance
    for n, band in enumerate(recipe.bands):
        if len(recipe.bands) > 1:
            found[f"band {n} weight"] = band.weight
        if band.coder == "signs":
            found |= {f"band {n} plane {p}": band.factors[p] for p in range(band.planes)}
    return found


def with_constants(recipe: Recipe, values: Mapping[str, float]) -> Recipe:
    """The recipe with some of its `constants` changed."""
    for name, value in values.items():
        words = name.split()
        if words[0] != "band":
            changed: dict[str, Any] = {name: value}
            recipe = altered(recipe, **changed)
            continue
        at = int(words[1])
        band = recipe.bands[at]
        if words[2] == "weight":
            band = altered(band, weight=value)
        else:
            place = int(words[3])
            band = altered(
                band, factors=tuple(value if n == place else f for n, f in enumerate(band.factors))
            )
        recipe = recipe.with_band(at, band)
    return recipe.normal()


# ---- two parents -----------------------------------------------------------------------------------------


def cross(rng: Rng, one: Recipe, other: Recipe) -> tuple[Recipe, str]:
    """Slow pairs as one parent keeps them, fast pairs as the other does; everything else from either."""
    cut = rng.randrange(2, STEPS - 1)
    fast, slow = (one, other) if rng.random() < 0.5 else (other, one)
    bands = [*_between(fast.bands, 0, cut), *_between(slow.bands, cut, STEPS)]
    whole = {
        name: getattr(rng.choice((one, other)), name) for name in ("pool", "heads", "temperature", "variance")
    }
    rounding = rng.choice((one, other))
    child = Recipe(
        tuple(bands[:4]) or one.bands, norm=rounding.norm, fitted=rounding.fitted, lead=rounding.lead,
        closed=rounding.closed, **whole,
    )  # fmt: skip
    return settled(rng, child), f"bands of both, cut at {cut}"


def _between(bands: Iterable[Band], low: int, high: int) -> list[Band]:
    """What lies between two cuts."""
    cut = [altered(b, low=max(b.low, low), high=min(b.high, high)) for b in bands]
    return [b for b in cut if b.low < b.high]


# ---- smaller ---------------------------------------------------------------------------------------------


def smaller(rng: Rng, recipe: Recipe) -> tuple[Recipe, str] | None:
    """One thing taken away; None where nothing is left to take."""
    taste = Taste()
    ways: list[Changed] = []
    for n, band in enumerate(recipe.bands):
        if len(recipe.bands) > 1:
            ways.append(drop_band(random.Random(n), recipe, taste))
        if band.planes > 1:
            ways.append((recipe.with_band(n, altered(band, planes=band.planes - 1)), "a plane less"))
        if band.scaled:
            ways.append((recipe.with_band(n, altered(band, scaled=False)), "a scale less"))
        if band.weight != 1.0:
            ways.append((recipe.with_band(n, altered(band, weight=1.0)), "a weight less"))
        if band.by_token and band.centre != "none":
            ways.append((recipe.with_band(n, altered(band, centre="none")), "a centre less"))
    plainer: dict[str, Any] = {"fitted": False, "closed": False, "variance": 0.0, "temperature": 1.0}
    for name, plain in plainer.items():
        if getattr(recipe, name) != plain:
            ways.append((altered(recipe, **{name: plain}), f"without {name}"))
    found = [(settled(rng, w[0]), w[1]) for w in ways if w is not None]
    found = [(r, what) for r, what in found if r != recipe and legal(r)]
    return rng.choice(found) if found else None
