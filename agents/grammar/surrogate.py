"""What a recipe not yet measured promises, from those that were: a Gaussian process over what recipes choose.

A draft costs a tenth of a millisecond before it is written as a program, a screen a hundred times that. So many are
drafted and the one is written that promises most, by what is expected of it and by how little is known of its like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agents.grammar.recipe import CENTRES, HEADS, LEADS, POOLS, STEPS, Band, Recipe

if TYPE_CHECKING:
    import numpy as np

_KINDS = ("mean", "extrema", "signs", "range", "int")
_BITS = {"int2": 2.0, "int3": 3.0, "int4": 4.0, "int8": 8.0, "fp8_e4m3": 6.0, "bf16": 10.0}
_LEAST = 8
"""Recipes below which nothing is expected."""
_MOST = 320
"""Recipes learned from: the best half of them, and the latest."""
_LENGTHS = (0.7, 1.0, 1.4, 2.0, 3.0)
_NOISES = (0.003, 0.03, 0.15)


@lru_cache(maxsize=50_000)
def features(recipe: Recipe) -> tuple[float, ...]:
    """Numbers that are near where recipes are alike: what each sixteenth of the pairs is kept by, and the rest."""
    parts = [_of_band(None)] * STEPS
    for band in recipe.bands:
        parts[band.low : band.high] = [_of_band(band)] * (band.high - band.low)
    found = [x for part in parts for x in part]
    scaled = [b for b in recipe.bands if b.scaled]
    found += [1.5 * (recipe.pool == p) for p in POOLS] + [1.5 * (recipe.heads == h) for h in HEADS]
    found += [0.5 * (recipe.lead == name) for name in LEADS]
    found += [
        _BITS[recipe.norm] / 6 if scaled else 0.0,
        1.0 * bool(scaled),
        0.7 * recipe.fitted,
        0.7 * recipe.closed,
        1.5 * math.log(max(0.05, recipe.temperature)),
        recipe.variance,
        0.2 * len(recipe.bands),
    ]
    return tuple(found)


def _of_band(band: Band | None) -> list[float]:
    """Of one sixteenth; a whole feature that differs in all of them counts as much as one of the rest."""
    part = 1 / math.sqrt(STEPS)
    if band is None:
        return [0.0] * (len(_KINDS) + len(CENTRES) + 7)
    kind = "int" if band.coder.startswith("int") else band.coder
    bits = _BITS.get(band.coder, float(band.planes) if kind in ("signs", "range") else 0.0)
    found = [1.0 * (kind == name) for name in _KINDS] + [0.5 * (band.centre == name) for name in CENTRES]
    found += [
        1.0,
        bits / 1.5,
        0.7 * band.scaled,
        0.5 * band.per_channel,
        _BITS[band.small] / 12,
        1.5 * math.log(max(0.05, band.weight)),
        0.7 * math.log(max(0.02, band.factors[0] / 0.98)) if kind == "signs" else 0.0,
    ]
    return [part * x for x in found]


class Surrogate:
    """Learned from measured recipes.

    Args:
        measured: recipes and what they had, in the order they came; at most 1.
    """

    def __init__(self, measured: Sequence[tuple[Recipe, float]]) -> None:
        import numpy as np

        chosen = self._chosen(measured)
        self.x = np.array([features(r) for r, _ in chosen])
        # What is missing, in orders of magnitude: between 0.98 and 0.99 lies as much as between 0.6 and 0.8.
        y = np.array([_missing(v) for _, v in chosen])
        self.middle, self.spread = float(y.mean()), float(y.std()) or 1.0
        self.best = float(y.max())
        self._fit((y - self.middle) / self.spread)

    @staticmethod
    def _chosen(measured: Sequence[tuple[Recipe, float]]) -> list[tuple[Recipe, float]]:
        if len(measured) <= _MOST:
            return list(measured)
        order = sorted(range(len(measured)), key=lambda n: -measured[n][1])
        kept = set(order[: _MOST // 2])
        for n in reversed(range(len(measured))):
            if len(kept) >= _MOST:
                break
            kept.add(n)
        return [measured[n] for n in sorted(kept)]

    def _fit(self, y: np.ndarray[Any, Any]) -> None:
        """The length and the noise under which what was measured is likeliest."""
        import numpy as np

        distances = _distances(self.x, self.x)
        best = -math.inf
        for length in _LENGTHS:
            kernel = _kernel(distances / length)
            for noise in _NOISES:
                try:
                    lower = np.linalg.cholesky(kernel + noise * np.eye(len(y)))
                except np.linalg.LinAlgError:
                    continue
                weights = _solved(lower, y)
                likelihood = -0.5 * float(y @ weights) - float(np.log(np.diag(lower)).sum())
                if likelihood > best:
                    best, self.length, self.lower, self.weights = likelihood, length, lower, weights

    def expects(self, recipes: Sequence[Recipe]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Mean and standard deviation of what each misses, in the unit of `best`."""
        import numpy as np
        from scipy.linalg import solve_triangular

        x = np.array([features(r) for r in recipes])
        k = _kernel(_distances(x, self.x) / self.length)
        mean = k @ self.weights
        inner = solve_triangular(self.lower, k.T, lower=True)
        deviation = np.sqrt(np.maximum(1e-9, 1.0 - np.square(inner).sum(0)))
        return self.middle + self.spread * mean, self.spread * deviation


def _missing(value: float) -> float:
    return -math.log(max(1e-4, 1.0 - value))


def _distances(a: Any, b: Any) -> Any:
    import numpy as np

    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(0.0, squared))


def _kernel(r: Any) -> Any:
    """Matern, twice differentiable."""
    import numpy as np

    r = math.sqrt(5.0) * r
    return (1 + r + r * r / 3) * np.exp(-r)


def _solved(lower: Any, y: Any) -> Any:
    from scipy.linalg import cho_solve

    return cho_solve((lower, True), y)
