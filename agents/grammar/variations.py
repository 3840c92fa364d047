"""Small changes to one expression that keep its dimensions."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from agents.grammar.settings import pick
from agents.grammar.signals import SCALE, standardised
from agents.grammar.term import Term, const, make, reduce, rewrite, walk

Rng = random.Random

SWAPS: Mapping[str, tuple[str, ...]] = {
    "sum": ("mean", "amax"),
    "mean": ("amax", "sum", "amin"),
    "amax": ("mean", "amin", "sum"),
    "amin": ("mean", "amax"),
    "maximum": ("add", "minimum"),
    "minimum": ("maximum", "add"),
    "add": ("maximum", "sub", "mul"),
    "sub": ("add", "maximum"),
    "mul": ("add", "minimum"),
    "exp": ("sigmoid", "tanh", "abs"),
    "tanh": ("sigmoid", "abs", "sign"),
    "sigmoid": ("tanh", "abs"),
    "abs": ("tanh",),
    "sqrt": ("tanh",),
    "lt": ("le",),
}


def role(t: Term) -> str:
    """What a term is, for people."""
    if t.has("page"):
        return "state" if t.state is not None else "score"
    return "query" if t.has("dim") else "number"


def word(op: str) -> str:
    """An operator's name for people."""
    return {"amax": "max", "amin": "min", "const": "a constant"}.get(op, op)


def variation(rng: Rng, t: Term) -> tuple[Term, str]:
    """`t` wrapped in something that keeps its dimensions."""
    ways: dict[str, float] = {"abs": 1, "relu": 1, "square": 0.7, "tanh": 0.5, "sigmoid": 0.5, "exp": 0.5}
    if t.has("page"):
        ways |= {"blur": 1.5, "sharpen": 0.7, "pool": 1.0, "softmax": 1.5, "standardise": 1.0, "centre": 0.7}
    if t.has("dim"):
        ways |= {"largest": 2.0, "unit": 1.0}
    if t.has("head"):
        ways |= {"without head mean": 0.7, "share of heads": 0.7}
    way = pick(rng, ways)
    match way:
        case "abs":
            new = make("abs", t)
        case "relu":
            new = make("maximum", t, const(0.0))
        case "square":
            new = t * t
        case "tanh" | "sigmoid" | "exp":
            new = make(way, SCALE * t)
        case "blur":
            new = make("conv", t, dim="page", weights=(0.25, 0.5, 0.25))
        case "sharpen":
            new = make("conv", t, dim="page", weights=(-0.25, 1.5, -0.25))
        case "pool":
            new = make("maxpool", t, dim="page", size=3)
        case "softmax":
            new = make("softmax", SCALE * t, dim="page")
        case "standardise":
            new = standardised(t)
        case "centre":
            new = t - reduce("mean", t, "page")
        case "largest":
            mask = make("largest", make("abs", t), dim="dim", k=rng.choice((8, 16, 32)))
            new = make("where", mask, t, const(0.0))
        case "unit":
            new = t / (make("sqrt", reduce("sum", t * t, "dim")) + 1e-6)
        case "without head mean":
            new = t - reduce("mean", t, "head")
        case _:
            new = make("softmax", SCALE * t, dim="head")
    return new, f"{way} of a {role(t)}"


def swapped(rng: Rng, value: Term) -> tuple[Term, str] | None:
    """`value` with one operator replaced by a similar one, and which; None where there is none."""
    sites = [t for t in walk(value) if t.op in SWAPS]
    if not sites:
        return None
    site = rng.choice(sites)
    op = rng.choice(SWAPS[site.op])
    new = make(op, *site.args, **site.attr)
    return rewrite(value, lambda t, args: new if t == site else None), f"{word(site.op)} -> {word(op)}"


def moved(rng: Rng, t: Term) -> Term | None:
    """The same operator with another number."""
    a: dict[str, Any] = t.attr
    factor = rng.choice((0.5, 0.7, 0.85, 1.2, 1.5, 2.0))
    match t.op:
        case "const":
            return const(a["value"] * factor if a["value"] else rng.choice((-0.1, 0.1)))
        case "conv":
            at = rng.randrange(len(a["weights"]))
            weights = [w if n != at else round(w * factor, 3) for n, w in enumerate(a["weights"])]
            return make("conv", *t.args, **{**a, "weights": tuple(weights)})
        case "maxpool":
            return make("maxpool", *t.args, **{**a, "size": rng.choice((3, 5, 7))})
        case "largest":
            return make("largest", *t.args, **{**a, "k": min(max(1, round(a["k"] * factor)), 64)})
        case "topp":
            rest = min(0.5, max(0.005, (1.0 - a["p"]) * factor))
            return make("topp", *t.args, **{**a, "p": round(1.0 - rest, 3)})
        case "threshold":
            return make("threshold", *t.args, **{**a, "at": round(a["at"] + rng.choice((-0.25, 0.25)), 3)})
        case "refine":
            return make("refine", *t.args, **{**a, "candidates": rng.choice((2, 3, 4, 6, 8, 16))})
        case "topk" if "fraction" in a:
            return make("topk", *t.args, **{**a, "fraction": round(min(1.0, a["fraction"] * factor), 3)})
    return None
