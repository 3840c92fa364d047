"""Random knobs, and changes to knobs."""

from __future__ import annotations

import random
import re
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.ir.knobs import PAGE_SIZES, Knobs

Rng = random.Random

_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
_TOKENS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
_DIVISORS = (4, 8, 12, 16, 24, 32)


def pick(rng: Rng, weights: dict[Any, float]) -> Any:
    """One key, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def random_budget(rng: Rng, layers: int) -> str:
    """A budget expression."""
    few, many = sorted(rng.sample(_TOKENS, 2))
    form = pick(rng, {"constant": 3, "grow": 5, "root": 1, "capped": 1, "layer": 2, "slope": 1})
    if form == "constant":
        return f"{rng.choice(_TOKENS[1:])}"
    if form == "root":
        return f"max({few}, {rng.choice((4, 6, 8, 12))} * sqrt(length))"
    if form == "capped":
        return f"min({max(2 * few, many)}, max({few}, length / {rng.choice(_DIVISORS)}))"
    if form == "layer":
        return f"{many} if layer < {rng.randint(1, max(1, layers // 3))} else {few}"
    if form == "slope":
        return f"max({few}, length / {rng.choice(_DIVISORS)} * (1.5 - layer / layers))"
    return f"max({few}, length / {rng.choice(_DIVISORS)})"


def random_dense_layers(rng: Rng, layers: int) -> tuple[int, ...]:
    """Layers left dense: the first ones, where attention is flattest, and at times the last."""
    first = range(pick(rng, {0: 6, 1: 3, 2: 2, 3: 0.5}))
    last = [layers - 1] if rng.random() < 0.1 else []
    return tuple(sorted({layer for layer in [*first, *last] if layer < layers}))


def anchored(rng: Rng, knobs: Knobs, layers: int) -> Knobs:
    """The settings with dense layers whose mass the others can read: the first one, and up to two more anywhere."""
    more = rng.sample(range(1, layers), min(layers - 1, rng.choice((0, 1, 1, 2))))
    return knobs.with_(dense_layers=tuple(sorted({0, *knobs.dense_layers, *more})))


def random_knobs(rng: Rng, layers: int) -> Knobs:
    """Settings of a new flow; mostly near the defaults, because most combinations of extremes are bad."""
    return _legal(
        Knobs(
            page_size=pick(rng, {8: 1, 16: 5, 32: 3, 64: 1.5}),
            budget=random_budget(rng, layers),
            keep_first=pick(rng, {0: 0.3, 1: 6, 2: 2, 4: 0.7}),
            keep_last=pick(rng, {1: 2, 2: 5, 4: 2}),
            dense_layers=random_dense_layers(rng, layers),
            reuse_steps=pick(rng, {1: 8, 2: 1, 4: 1}),
            # On a real model it is what makes a step faster most (benchmarks/results/campaigns_gpu.md).
            reuse_layers=pick(rng, {1: 6, 2: 2, 4: 2, 8: 1}),
        )
    )


def _legal(knobs: Knobs) -> Knobs:
    """The budget covers what is kept by rule: fewer pages are kept, and those are smaller, until it does."""
    if not covers(knobs):
        knobs = knobs.with_(keep_first=1, keep_last=1)
    while not covers(knobs):
        knobs = knobs.with_(page_size=knobs.page_size // 2)
    return knobs


def covers(knobs: Knobs) -> bool:
    """Whether the budget holds more pages than those kept by rule, in the first layer and at every length.

    Raises:
        VortexError: `VF060` if the budget is not a number somewhere.
    """
    kept = knobs.keep_first + knobs.keep_last
    return all(
        knobs.pages(length, layer, layers) > kept
        for layers in (1, 32)
        for layer in (0, layers - 1)
        for length in (32 * (kept + 2) * knobs.page_size, 32_768)
    )


def change_knobs(rng: Rng, knobs: Knobs, layers: int) -> tuple[Knobs, str] | None:
    """One knob changed, with what changed in words; None where the choice is not legal."""
    name = pick(
        rng,
        {
            "budget": 5,
            "page_size": 2,
            "keep_first": 1,
            "keep_last": 1,
            "dense_layers": 1.5,
            "reuse_steps": 1,
            "reuse_layers": 1.5,
        },
    )
    value: Any
    if name == "budget":
        value = scaled_budget(rng, knobs.budget) if rng.random() < 0.6 else random_budget(rng, layers)
    elif name == "page_size":
        at = PAGE_SIZES.index(knobs.page_size) + rng.choice((-1, 1))
        value = PAGE_SIZES[min(max(at, 0), len(PAGE_SIZES) - 1)]
    elif name == "dense_layers":
        value = random_dense_layers(rng, layers)
    elif name in ("keep_first", "keep_last"):
        low = 0 if name == "keep_first" else 1
        value = max(low, getattr(knobs, name) + rng.choice((-1, 1, 2)))
    else:
        value = max(1, getattr(knobs, name) + rng.choice((-1, 1, 1, 3)))
    try:
        new = knobs.with_(**{name: value})
        legal = covers(new)
    except VortexError:  # a scaled number may divide by zero or leave the knob's range
        return None
    if new == knobs or not legal:
        return None
    return new, f"{name} {_shown(getattr(knobs, name))} -> {_shown(value)}"


def _shown(value: object) -> str:
    return "none" if value == () else str(value)


def scaled_budget(rng: Rng, budget: str) -> str:
    """The same expression with one of its numbers changed."""
    numbers = list(_NUMBER.finditer(budget))
    if not numbers:
        return budget
    found = rng.choice(numbers)
    value = float(found.group()) * rng.choice((0.5, 0.67, 0.75, 1.25, 1.5, 2.0))
    if value >= 64:
        text = str(round(value / 16) * 16)
    elif float(found.group()).is_integer():
        text = str(max(1, round(value)))
    else:
        text = f"{value:.3g}"
    return budget[: found.start()] + text + budget[found.end() :]


def mixed_knobs(rng: Rng, one: Knobs, other: Knobs) -> Knobs:
    """Each knob from either parent; all of the first where the mixture is not legal."""
    data, second = one.to_json(), other.to_json()
    mixed = Knobs.from_json({k: (data if rng.random() < 0.6 else second)[k] for k in data})
    return mixed if covers(mixed) else one
