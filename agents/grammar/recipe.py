"""Recipes: a family of programs that estimate the logit of every token from a few bits.

What the field and searches before found to work is of one form. The rotary pairs are cut into bands by frequency;
each band's keys are written around a centre of the page, scaled by the token, with the rest in a few bits; the pages
are ranked by the softmax mass of the logits estimated from that. A `Recipe` names the choices,
`agents.grammar.recipe_terms` writes the program of one, `recipe_draw` draws them, `recipe_moves` changes and crosses
them, and `recipe_sizes` makes them fit a bound.

A recipe is also one line of text, which travels in a flow's description. It is believed only where the program it
writes is the flow's own (`agents.grammar.proposer`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

STEPS = 16
"""Bands are cut at sixteenths of the rotary pairs, the fastest first: no model's channel numbers are meant."""

INTEGERS = ("int2", "int3", "int4", "int8")
CODERS = ("mean", "signs", "range", *INTEGERS, "extrema")
CENTRES = ("none", "mean", "fit", "middle")
POOLS = ("mass", "max", "logsumexp")
HEADS = ("mean", "amax")
LEADS = ("all", "fast", "slow")
SMALL_DTYPES = ("bf16", "fp8_e4m3", "int8", "int4")
MAX_PLANES = 4
FACTORS = (0.98, 0.53, 0.27, 0.13)
"""By which sign planes are multiplied until something better is known: the best for normal residuals."""


_Value = TypeVar("_Value", "Band", "Recipe")


def altered(value: _Value, **new: Any) -> _Value:
    """The value with other fields; `dataclasses.replace` looks at every field, a third of a draft's time."""
    found = object.__new__(type(value))
    found.__dict__.update(value.__dict__, **new)
    return found


@dataclass(frozen=True)
class Band:
    """How the keys of some rotary pairs are kept.

    Attributes:
        low, high: the pairs, in sixteenths, from the fastest.
        coder: of what is left beside the centre. `mean`: nothing; `signs`: planes of sign bits, scaled by the spread of
            each channel; `range`: planes of sign bits, scaled by each token's largest; `int2` to `int8`: numbers
            with one scale a token; `extrema`: no tokens, Quest's bound over the page.
        centre: `none`, the `mean` of the page, the `fit` of the tokens' scales to its keys (a mean in which long keys
            count by their length), or the `middle` of its extrema.
        scaled: keys are divided by each token's scale first, which all scaled bands share.
        planes: of sign bits.
        rows: parts of the page that have a centre each, where the coder is `mean` or `extrema`.
        per_channel: integers have one scale a channel, in place of one a token.
        small: dtype of centres and spreads.
        factors: of the planes.
        weight: of the band's part of the logit.
    """

    low: int
    high: int
    coder: str = "signs"
    centre: str = "mean"
    scaled: bool = False
    planes: int = 1
    rows: int = 1
    per_channel: bool = False
    small: str = "int4"
    factors: tuple[float, ...] = FACTORS
    weight: float = 1.0

    @property
    def by_token(self) -> bool:
        """Whether something is kept for every token."""
        return self.coder in ("signs", "range", *INTEGERS)

    @lru_cache(maxsize=20_000)  # noqa: B019  bands are values, and few of them differ
    def normal(self) -> Band:
        """The same with everything that its coder does not read at its default, so that equal programs are equal."""
        d = Band(self.low, self.high)
        planes = self.planes if self.coder in ("signs", "range") else d.planes
        factors = tuple(round(f, 3) for f in self.factors) if self.coder == "signs" else d.factors
        page_only = self.coder in ("mean", "extrema")
        centre = "mean" if self.coder == "mean" and self.centre == "none" else self.centre
        if centre == "fit" and not (self.scaled and self.by_token):
            centre = "mean"
        return Band(
            self.low, self.high, self.coder,
            centre if self.coder != "extrema" else d.centre,
            self.scaled and self.by_token,
            planes,
            self.rows if page_only else d.rows,
            self.per_channel and self.coder in INTEGERS,
            self.small if self.coder != "int4" or centre != "none" else d.small,
            (*factors[:planes], *d.factors[planes:]),
            round(self.weight, 3),
        )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A program of the family.

    Attributes:
        bands: in rising order, not overlapping; pairs in none of them are left out.
        pool: how a page's tokens become its score: softmax `mass`, largest logit (`max`), or `logsumexp`.
        heads: how query heads are merged afterwards.
        norm: dtype of the tokens' scale, where a band is scaled.
        fitted: the scale is a least-squares fit to what is kept, in place of the norm.
        lead: scaled bands that the scale is of: `all`, the fastest (`fast`) or the slowest (`slow`).
        closed: what is left is measured against the centre as it will be read back.
        temperature: the logits are multiplied by it before they are pooled.
        variance: weight of a second-order term for what is not kept: the spread of the bands' rest.
    """

    bands: tuple[Band, ...]
    pool: str = "mass"
    heads: str = "mean"
    norm: str = "int8"
    fitted: bool = False
    lead: str = "all"
    closed: bool = False
    temperature: float = 1.0
    variance: float = 0.0

    @lru_cache(maxsize=20_000)  # noqa: B019  what is made to fit is asked for it at every step
    def normal(self) -> Recipe:
        """The same with what nothing reads at its default."""
        bands = tuple(sorted((b.normal() for b in self.bands), key=lambda b: (b.low, b.high)))
        scaled = sum(b.scaled for b in bands)
        tokens = any(b.by_token for b in bands)
        return Recipe(
            bands,
            self.pool if tokens or any(b.rows > 1 for b in bands) else "mass",
            self.heads,
            self.norm if scaled else "int8",
            self.fitted and scaled > 0,
            self.lead if scaled > 1 else "all",
            self.closed and any(b.small != "bf16" for b in bands if b.by_token),
            round(self.temperature, 3),
            round(self.variance, 3) if any(b.coder == "signs" for b in bands) else 0.0,
        )

    def with_band(self, at: int, band: Band) -> Recipe:
        """The recipe with another band in the place of one."""
        return altered(self, bands=tuple(band if n == at else b for n, b in enumerate(self.bands)))

    @property
    def text(self) -> str:
        """One line, read back by `parse`."""
        whole = [f"{f.name}={_shown(getattr(self, f.name))}" for f in fields(self) if f.name != "bands"]
        return "recipe[" + " | ".join([*(_band_text(b) for b in self.bands), " ".join(whole)]) + "]"


def _band_text(band: Band) -> str:
    rest = [f"{f.name}={_shown(getattr(band, f.name))}" for f in fields(band)[3:]]
    return f"{band.low}-{band.high} {band.coder} {' '.join(rest)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_RECIPE = re.compile(r"recipe\[([^\[\]]{1,2000})\]")


def parse(text: str) -> Recipe | None:
    """The recipe in a text, None where there is none that can be read: texts come from anywhere."""
    found = _RECIPE.search(text)
    if found is None:
        return None
    *bands, whole = found.group(1).split(" | ")
    try:
        recipe = Recipe(tuple(_band(b) for b in bands), **_values(whole.split(), Recipe))
        return recipe if legal(recipe) else None
    except (ValueError, TypeError, KeyError):
        return None


def _band(text: str) -> Band:
    where, coder, *rest = text.split()
    low, high = where.split("-")
    return Band(int(low), int(high), coder, **_values(rest, Band))


def _values(words: list[str], kind: type[Band] | type[Recipe]) -> dict[str, Any]:
    types = {f.name: str(f.type) for f in fields(kind)}
    found: dict[str, Any] = {}
    for word in words:
        name, value = word.split("=")
        match types[name]:
            case "bool":
                found[name] = {"True": True, "False": False}[value]
            case "int":
                found[name] = int(value)
            case "float":
                found[name] = float(value)
            case "str":
                found[name] = value
            case _:
                found[name] = tuple(float(v) for v in value.split("/"))
    return found


def legal(recipe: Recipe) -> bool:
    """Whether a program can be written of it."""
    at = 0
    for band in sorted(recipe.bands, key=lambda b: b.low):
        if not at <= band.low < band.high <= STEPS:
            return False
        at = band.high
        known = band.coder in CODERS and band.centre in CENTRES and band.small in SMALL_DTYPES
        counted = (
            1 <= band.planes <= MAX_PLANES and band.rows in (1, 2, 4) and len(band.factors) == MAX_PLANES
        )
        if not known or not counted:
            return False
    rows = {b.rows for b in recipe.bands if not b.by_token and b.rows > 1}
    if rows and any(b.by_token for b in recipe.bands):
        return False  # parts of a page and its tokens do not fit one another
    return (
        0 < len(recipe.bands) <= 4
        and len(rows) <= 1
        and recipe.pool in POOLS
        and recipe.heads in HEADS
        and recipe.norm in SMALL_DTYPES
        and recipe.lead in LEADS
    )
