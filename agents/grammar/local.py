"""Small steps around one program: its numbers and dtypes moved to a given point, and things taken away."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from agents.grammar import recipe_moves
from agents.grammar.recipe import SMALL_DTYPES, Recipe
from agents.grammar.term import Flow, State, Term, const, make

_VECTOR_DTYPES = ("bf16", "fp8_e4m3", "int8", "int4", "int3", "int2")
_SCALAR_DTYPES = ("fp32", "bf16", "fp8_e4m3")
_FIXED = (0.0, 1.0, -1.0, 0.5, 1e-6, 1e-9, 1e-12)
"""Constants that are part of a form, not a choice: halves, signs, and what keeps a quotient finite."""


def tune_recipe(recipe: Recipe, point: Sequence[float]) -> tuple[Recipe, str]:
    """A recipe's constants and dtypes moved to a point of the unit cube; its middle leaves constants as they are.

    Args:
        point: one number in [0, 1] a choice, in order; those beyond the choices mean nothing.
    """
    left = iter(point)
    values = recipe_moves.constants(recipe)
    moved = {name: value * _factor(next(left, 0.5)) for name, value in sorted(values.items())}
    found = recipe_moves.with_constants(recipe, moved)
    bands = []
    for band in found.bands:
        at = next(left, None)
        bands.append(band if at is None else replace(band, small=_choice(SMALL_DTYPES, band.small, at)))
    at = next(left, None)
    norm = found.norm if at is None else _choice(SMALL_DTYPES, found.norm, at)
    return replace(found, bands=tuple(bands), norm=norm).normal(), "constants and dtypes tuned"


def tune_terms(flow: Flow, point: Sequence[float]) -> tuple[Flow, str]:
    """The same for any program: constants of forward_indexer, and dtypes of states."""
    left = iter(point)
    new: dict[str, Term] = {}
    for t in flow.terms():
        if t.op == "const" and t.attr["value"] not in _FIXED:
            new[t.key] = const(t.attr["value"] * _factor(next(left, 0.5)))
    changed = flow.swap(new)
    states: dict[str, State] = {}
    for state in changed.states():
        at = next(left, None)
        if state.value is not None and at is not None:
            choices = _VECTOR_DTYPES if state.dims else _SCALAR_DTYPES
            states[state.key] = replace(state, dtype=_choice(choices, state.dtype, at))
    return changed.swap_states(states), "constants and dtypes tuned"


def _factor(at: float) -> float:
    """From a half to twice."""
    return float(2.0 ** (2.0 * at - 1.0))


def _choice(choices: Sequence[str], now: str, at: float) -> str:
    """One of the choices; the middle third of the range keeps what there is."""
    if now not in choices or 1 / 3 <= at <= 2 / 3:
        return now
    spread = at * 3 if at < 1 / 3 else (at - 2 / 3) * 3
    others = [c for c in choices if c != now]
    half = max(1, len(others) // 2)
    part = others[:half] if at < 1 / 3 else others[half:] or others
    return part[min(int(spread * len(part)), len(part) - 1)]


def without_something(rng: random.Random, flow: Flow) -> tuple[Flow, str] | None:
    """One operator replaced by one of its operands, in forward_indexer or in what a state holds."""
    sites = [
        (t, a)
        for t in flow.terms()
        if t.type.kind == "float"
        for a in t.args
        if a.type.dims == t.type.dims and a.type.kind == "float"
    ]
    if flow.result.op == "union":
        sites += [(flow.result, a) for a in flow.result.args]
    if not sites:
        return None
    site, kept = rng.choice(sites)
    if site is flow.result:
        attrs = {k: v for k, v in kept.attr.items() if k != "fraction"}
        return Flow(make(kept.op, *kept.args, **attrs), flow.updates).pruned(), "one stream left out"
    return flow.swap({site.key: kept}), f"without one {site.op}"
