"""Recipes drawn at random, changed a little, and crossed; what is drawn leans towards what did well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from agents.grammar.recipe import FACTORS, MAX_PLANES, STEPS, Band, Recipe, legal

Rng = random.Random

_CODERS = {
    "mean": 1.5,
    "signs": 3.0,
    "range": 2.0,
    "int2": 1.0,
    "int3": 1.0,
    "int4": 2.0,
    "int8": 0.5,
    "extrema": 1.0,
}
_CENTRES = {"none": 1.0, "mean": 5.0, "middle": 0.7}
_SMALL = {"bf16": 1.0, "fp8_e4m3": 1.5, "int8": 2.0, "int4": 3.0}
_POOLS = {"mass": 5.0, "max": 2.0, "logsumexp": 2.0}
_HEADS = {"mean": 4.0, "amax": 2.0}
_NORMS = {"bf16": 0.5, "fp8_e4m3": 2.0, "int8": 3.0, "int4": 1.0}
_BANDS = {1: 3.0, 2: 4.0, 3: 2.0}
_PLANES = {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}
_SLIGHT = (0.8, 0.9, 0.95, 1.05, 1.1, 1.25)


@dataclass(frozen=True)
class Taste:
    """Weights of choices: those above, and what the best recipes so far chose.

    Every choice keeps its own weight, so nothing dies out; what a share of the best chose gains as much again as all
    the weights together, times that share.

    Args:
        best: recipes that did well.
    """

    best: tuple[Recipe, ...] = ()
    _seen: dict[str, Counter[Any]] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        for recipe in self.best:
            self._count("pool", recipe.pool)
            self._count("heads", recipe.heads)
            self._count("norm", recipe.norm)
            self._count("bands", len(recipe.bands))
            for band in recipe.bands:
                for name in ("coder", "centre", "small", "planes"):
                    self._count(name, getattr(band, name))

    def _count(self, name: str, value: object) -> None:
        self._seen.setdefault(name, Counter())[value] += 1

    def pick(self, rng: Rng, name: str, weights: Mapping[Any, float]) -> Any:
        """One of the keys of `weights`."""
        seen = self._seen.get(name, Counter())
        total, count = sum(weights.values()), sum(seen.values())
        learned = [w + (total * seen[key] / count if count else 0.0) for key, w in weights.items()]
        return rng.choices(list(weights), learned)[0]


# ---- from nothing ----------------------------------------------------------------------------------------


def draw(rng: Rng, taste: Taste) -> Recipe:
    """A recipe from nothing."""
    count = taste.pick(rng, "bands", _BANDS)
    # The slowest pairs carry most of what tells far pages apart; the fastest are left out as often as not.
    low = rng.choice((0, 0, 1, 2, 2, 3, 4, 5, 6, 8, 10))
    cuts = sorted(rng.sample(range(low + 1, STEPS), min(count - 1, STEPS - low - 1)))
    edges = [low, *cuts, STEPS]
    bands = [draw_band(rng, taste, a, b) for a, b in pairwise(edges)]
    if len(bands) > 1 and rng.random() < 0.15:
        bands.pop(rng.randrange(len(bands)))
    return settled(
        rng,
        Recipe(
            tuple(bands),
            taste.pick(rng, "pool", _POOLS),
            taste.pick(rng, "heads", _HEADS),
            taste.pick(rng, "norm", _NORMS),
            fitted=rng.random() < 0.4,
            closed=rng.random() < 0.3,
            temperature=rng.choice((1.0, 1.0, 1.0, 0.8, 1.2)),
            variance=rng.choice((0.0, 0.0, 0.0, 0.0, 0.5, 1.0)),
        ),
    )


def draw_band(rng: Rng, taste: Taste, low: int, high: int) -> Band:
    """A band for some pairs."""
    return Band(
        low, high,
        taste.pick(rng, "coder", _CODERS),
        taste.pick(rng, "centre", _CENTRES),
        scaled=rng.random() < 0.5,
        planes=taste.pick(rng, "planes", _PLANES),
        rows=rng.choice((1, 1, 2, 4)),
        per_channel=rng.random() < 0.4,
        small=taste.pick(rng, "small", _SMALL),
    )  # fmt: skip


def settled(rng: Rng, recipe: Recipe) -> Recipe:
    """The recipe with bands that fit one another: parts of a page have one number, and none beside tokens."""
    tokens = any(b.by_token for b in recipe.bands)
    rows = 1 if tokens else next((b.rows for b in recipe.bands if not b.by_token), 1)
    bands = tuple(replace(b, rows=1 if b.by_token else rows) for b in recipe.bands)
    return replace(recipe, bands=bands).normal()


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
        bands[at] = replace(band, low=band.low + step)
        if at and bands[at - 1].high == band.low:
            bands[at - 1] = replace(bands[at - 1], high=band.low + step)
    else:
        bands[at] = replace(band, high=band.high + step)
        if at + 1 < len(bands) and bands[at + 1].low == band.high:
            bands[at + 1] = replace(bands[at + 1], low=band.high + step)
    return replace(recipe, bands=tuple(bands)), f"band {band.low}-{band.high} cut elsewhere"


def change_coder(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band is kept in another way."""
    at = rng.randrange(len(recipe.bands))
    band = recipe.bands[at]
    new = replace(band, coder=taste.pick(rng, "coder", _CODERS), planes=taste.pick(rng, "planes", _PLANES))
    return _with(recipe, at, new), f"band {band.low}-{band.high}: {band.coder} -> {new.coder}"


def change_planes(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A plane of bits more or less."""
    places = [n for n, b in enumerate(recipe.bands) if b.coder in ("signs", "range")]
    if not places:
        return None
    at = rng.choice(places)
    band = recipe.bands[at]
    planes = min(MAX_PLANES, max(1, band.planes + rng.choice((-1, 1))))
    factors = (*band.factors[: band.planes], *FACTORS[band.planes :])
    return _with(recipe, at, replace(band, planes=planes, factors=factors)), f"{planes} planes"


def change_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """Centre, scale, dtype or parts of a band."""
    at = rng.randrange(len(recipe.bands))
    band = recipe.bands[at]
    match rng.choice(("centre", "scaled", "small", "per_channel", "rows")):
        case "centre":
            new = replace(band, centre=taste.pick(rng, "centre", _CENTRES))
        case "scaled":
            new = replace(band, scaled=not band.scaled)
        case "small":
            new = replace(band, small=taste.pick(rng, "small", _SMALL))
        case "per_channel":
            new = replace(band, per_channel=not band.per_channel)
        case _:
            new = replace(band, rows=rng.choice((1, 2, 4)))
    return _with(recipe, at, new), f"band {band.low}-{band.high} kept otherwise"


def split_band(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A band becomes two, one of them kept in another way."""
    places = [n for n, b in enumerate(recipe.bands) if b.high - b.low > 1]
    if not places or len(recipe.bands) > 3:
        return None
    at = rng.choice(places)
    band = recipe.bands[at]
    cut = rng.randrange(band.low + 1, band.high)
    halves = [replace(band, high=cut), replace(band, low=cut)]
    which = rng.randrange(2)
    halves[which] = draw_band(rng, taste, halves[which].low, halves[which].high)
    bands = (*recipe.bands[:at], *halves, *recipe.bands[at + 1 :])
    return replace(recipe, bands=bands), f"band {band.low}-{band.high} in two"


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
        bands[n] = replace(near, low=min(near.low, band.low), high=max(near.high, band.high))
    return replace(recipe, bands=tuple(bands)), f"without band {band.low}-{band.high}"


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
    return replace(
        recipe, bands=(*recipe.bands, draw_band(rng, taste, low, high))
    ), f"band {low}-{high} added"


def change_whole(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """Pooling, heads, the tokens' scale, rounding."""
    name = rng.choice(("pool", "heads", "norm", "fitted", "closed", "variance"))
    value: Any
    match name:
        case "pool":
            value = taste.pick(rng, name, _POOLS)
        case "heads":
            value = taste.pick(rng, name, _HEADS)
        case "norm":
            value = taste.pick(rng, name, _NORMS)
        case "variance":
            value = rng.choice((0.0, 0.25, 0.5, 1.0))
        case _:
            value = not getattr(recipe, name)
    return replace(recipe, **{name: value}), f"{name} {value}"


def move_constant(rng: Rng, recipe: Recipe, taste: Taste) -> Changed:
    """A constant moves a little."""
    values = constants(recipe)
    name = rng.choice(sorted(values))
    return with_constants(recipe, {name: values[name] * rng.choice(_SLIGHT)}), f"{name} moved"


def _with(recipe: Recipe, at: int, band: Band) -> Recipe:
    return replace(recipe, bands=tuple(band if n == at else b for n, b in enumerate(recipe.bands)))


MOVES: dict[Callable[[Rng, Recipe, Taste], Changed], float] = {
    move_edge: 3.0,
    change_coder: 2.0,
    change_planes: 2.0,
    change_band: 3.0,
    split_band: 1.0,
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
            recipe = replace(recipe, **changed)
            continue
        at = int(words[1])
        band = recipe.bands[at]
        if words[2] == "weight":
            band = replace(band, weight=value)
        else:
            place = int(words[3])
            band = replace(
                band, factors=tuple(value if n == place else f for n, f in enumerate(band.factors))
            )
        recipe = _with(recipe, at, band)
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
        tuple(bands[:4]) or one.bands, norm=rounding.norm, fitted=rounding.fitted, closed=rounding.closed, **whole
    )  # fmt: skip
    return settled(rng, child), f"bands of both, cut at {cut}"


def _between(bands: Iterable[Band], low: int, high: int) -> list[Band]:
    """What lies between two cuts."""
    cut = [replace(b, low=max(b.low, low), high=min(b.high, high)) for b in bands]
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
            ways.append((_with(recipe, n, replace(band, planes=band.planes - 1)), "a plane less"))
        if band.scaled:
            ways.append((_with(recipe, n, replace(band, scaled=False)), "a scale less"))
        if band.weight != 1.0:
            ways.append((_with(recipe, n, replace(band, weight=1.0)), "a weight less"))
        if band.by_token and band.centre != "none":
            ways.append((_with(recipe, n, replace(band, centre="none")), "a centre less"))
    plainer: dict[str, Any] = {"fitted": False, "closed": False, "variance": 0.0, "temperature": 1.0}
    for name, plain in plainer.items():
        if getattr(recipe, name) != plain:
            ways.append((replace(recipe, **{name: plain}), f"without {name}"))
    found = [(settled(rng, w[0]), w[1]) for w in ways if w is not None]
    found = [(r, what) for r, what in found if r != recipe and legal(r)]
    return rng.choice(found) if found else None
