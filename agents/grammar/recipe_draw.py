"""Recipes drawn at random; what is drawn leans towards what did well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from agents.grammar.recipe import LEADS, STEPS, Band, Recipe, altered

Rng = random.Random

CODERS = {
    "mean": 1.5, "signs": 3.0, "range": 2.0, "int2": 1.0, "int3": 1.0, "int4": 2.0, "int8": 0.5, "extrema": 1.0,
}  # fmt: skip
CENTRES = {"none": 2.0, "mean": 4.0, "fit": 2.0, "middle": 0.5}
SMALL = {"bf16": 1.0, "fp8_e4m3": 1.5, "int8": 2.0, "int4": 3.0}
POOLS = {"mass": 5.0, "max": 2.0, "logsumexp": 2.0}
HEADS = {"mean": 4.0, "amax": 2.0}
NORMS = {"bf16": 0.5, "fp8_e4m3": 2.0, "int8": 3.0, "int4": 1.0}
BANDS = {1: 3.0, 2: 4.0, 3: 2.0}
PLANES = {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}
LED = dict.fromkeys(LEADS, 1.0)
SCALED = {True: 1.0, False: 1.0}
FITTED = {True: 1.0, False: 1.5}
# What is rounded is best measured as it will be read back; it costs nothing that is kept.
CLOSED = {True: 2.0, False: 1.0}
# The slowest pairs carry most of what tells far pages apart; the fastest are left out as often as not.
LOWS = {0: 2.0, 1: 1.0, 2: 2.0, 3: 1.0, 4: 1.0, 5: 1.0, 6: 1.0, 8: 1.0, 10: 1.0}


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
            self._count("low", recipe.bands[0].low)
            for name in ("closed", "fitted", "lead"):
                self._count(name, getattr(recipe, name))
            for band in recipe.bands:
                for name in ("coder", "centre", "small", "planes", "scaled"):
                    self._count(place(name, band.low, band.high), getattr(band, name))

    def _count(self, name: str, value: object) -> None:
        self._seen.setdefault(name, Counter())[value] += 1

    def pick(self, rng: Rng, name: str, weights: Mapping[Any, float]) -> Any:
        """One of the keys of `weights`."""
        seen = self._seen.get(name, Counter())
        total, count = sum(weights.values()), sum(seen.values())
        learned = [w + (total * seen[key] / count if count else 0.0) for key, w in weights.items()]
        return rng.choices(list(weights), learned)[0]


def place(name: str, low: int, high: int) -> str:
    """A choice of a band, by where it lies: what suits slow pairs need not suit fast ones."""
    return f"{name} {'slow' if low + high > STEPS else 'fast'}"


def draw(rng: Rng, taste: Taste) -> Recipe:
    """A recipe from nothing."""
    count = taste.pick(rng, "bands", BANDS)
    low = taste.pick(rng, "low", LOWS)
    cuts = sorted(rng.sample(range(low + 1, STEPS), min(count - 1, STEPS - low - 1)))
    edges = [low, *cuts, STEPS]
    bands = [draw_band(rng, taste, a, b) for a, b in pairwise(edges)]
    if len(bands) > 1 and rng.random() < 0.15:
        bands.pop(rng.randrange(len(bands)))
    return settled(
        rng,
        Recipe(
            tuple(bands),
            taste.pick(rng, "pool", POOLS),
            taste.pick(rng, "heads", HEADS),
            taste.pick(rng, "norm", NORMS),
            fitted=taste.pick(rng, "fitted", FITTED),
            lead=taste.pick(rng, "lead", LED),
            closed=taste.pick(rng, "closed", CLOSED),
            temperature=rng.choice((1.0, 1.0, 1.0, 0.8, 1.2)),
            variance=rng.choice((0.0, 0.0, 0.0, 0.0, 0.5, 1.0)),
        ),
    )


def draw_band(rng: Rng, taste: Taste, low: int, high: int) -> Band:
    """A band for some pairs."""

    def pick(name: str, weights: Mapping[Any, float]) -> Any:
        return taste.pick(rng, place(name, low, high), weights)

    return Band(
        low, high,
        pick("coder", CODERS),
        pick("centre", CENTRES),
        scaled=pick("scaled", SCALED),
        planes=pick("planes", PLANES),
        rows=rng.choice((1, 1, 2, 4)),
        per_channel=rng.random() < 0.4,
        small=pick("small", SMALL),
    )  # fmt: skip


def settled(rng: Rng, recipe: Recipe) -> Recipe:
    """The recipe with bands that fit one another: parts of a page have one number, and none beside tokens."""
    tokens = any(b.by_token for b in recipe.bands)
    rows = 1 if tokens else next((b.rows for b in recipe.bands if not b.by_token), 1)
    if all(b.rows == (1 if b.by_token else rows) for b in recipe.bands):
        return recipe.normal()
    bands = tuple(altered(b, rows=1 if b.by_token else rows) for b in recipe.bands)
    return altered(recipe, bands=bands).normal()
