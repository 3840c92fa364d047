"""The program of a recipe, as terms."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from agents.grammar.recipe import INTEGERS, STEPS, Band, Recipe
from agents.grammar.signals import SCALE
from agents.grammar.term import Flow, State, Term, const, load, make, reduce
from vortex_core.ir.types import Extent

_TINY = 1e-6
_HALF = 2 * STEPS  # the unit of a band is D / _HALF: rotary pairs are the same channels of two halves
_LEVELS = {"int8": 127.0, "int4": 7.0}


def program_of(recipe: Recipe) -> Flow:
    """A flow that scores pages as the recipe says."""
    return Flow(make("topk", _Writer(recipe).score()))


def channels(x: Term, band: Band) -> Term:
    """The band's channels of a tensor with all of them, along `ch`."""
    if band.high - band.low == STEPS:
        both = x
    else:
        first, second = (_slice(x, band.low + at, band.high + at) for at in (0, STEPS))
        both = make("concat", first, second, dim="dim")
    return make("rename", both, dim="dim", to="ch")


def _slice(x: Term, low: int, high: int) -> Term:
    start, stop = (str(Extent("D", Fraction(n, _HALF))) if n else 0 for n in (low, high))
    return make("slice", x, dim="dim", start=start, stop=stop)


def rounded(x: Term, dtype: str, dim: str) -> Term:
    """`x` as a state of a dtype reads back, integers with one scale along `dim`."""
    if dtype not in _LEVELS:
        return make("cast", x, dtype=dtype)
    unit = reduce("amax", make("abs", x), dim) / _LEVELS[dtype] + 1e-9
    return make("floor", x / unit + 0.5) * unit


class _Writer:
    """Writes one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.keys = make("rename", make("k"), dim="token", to="row")
        self.query = make("q")
        self.norm = self._norm()

    def _norm(self) -> Term | None:
        """Each token's scale, `row`, as it is read back; None where no band is scaled.

        It is the norm over the scaled bands that lead, or, fitted, what fits their keys best to what is kept of them.
        """
        scaled = [b for b in self.recipe.bands if b.scaled]
        if not scaled:
            return None
        led = {"all": scaled, "fast": scaled[:1], "slow": scaled[-1:]}[self.recipe.lead]
        keys = [channels(self.keys, b) for b in led]
        plain = make("sqrt", _total(reduce("sum", x * x, "ch") for x in keys)) + _TINY
        if not self.recipe.fitted:
            return plain
        images = [self._image(b, x / plain, plain) for b, x in zip(led, keys, strict=True)]
        above = _total(reduce("sum", x * i, "ch") for x, i in zip(keys, images, strict=True))
        return above / (_total(reduce("sum", i * i, "ch") for i in images) + _TINY)

    def _image(self, band: Band, unit: Term, norm: Term) -> Term:
        """What is kept of a band's keys, with everything exact but the bits."""
        centre = self._centre(band, unit, norm)
        rest = unit if centre is None else unit - centre
        if band.coder not in ("signs", "range"):
            return unit
        scale = self._spread(rest) if band.coder == "signs" else reduce("amax", make("abs", rest), "ch")
        image, left = centre, rest
        for factor in self._factors(band):
            step = scale * factor * make("sign", left)
            image = step if image is None else image + step
            left = left - step
        assert image is not None
        return image

    @staticmethod
    def _factors(band: Band) -> tuple[float, ...]:
        if band.coder == "range":  # halves of halves
            return tuple(0.5**n for n in range(1, band.planes + 1))
        return band.factors[: band.planes]

    def _centre(self, band: Band, x: Term, norm: Term | None) -> Term | None:
        """`ch`; None for no centre."""
        match band.centre:
            case (
                "fit"
            ):  # least squares over the keys themselves: long ones count by the square of their length
                assert norm is not None
                weight = norm * norm
                found = reduce("sum", x * weight, "row") / (reduce("sum", weight, "row") + _TINY)
            case "mean":
                found = reduce("mean", x, "row")
            case "middle":
                found = 0.5 * (reduce("amax", x, "row") + reduce("amin", x, "row"))
            case _:
                return None
        return rounded(found, band.small, "ch") if self.recipe.closed else found

    @staticmethod
    def _spread(rest: Term) -> Term:
        return make("sqrt", reduce("mean", rest * rest, "row") + 1e-12)

    # ---- logits ------------------------------------------------------------------------------------------

    def score(self) -> Term:
        """`page`: what pages are ranked by."""
        parts = [self._logit(band) for band in self.recipe.bands]
        logits = parts[0]
        for more in parts[1:]:
            logits = logits + more
        logits = SCALE * logits
        if self.recipe.variance:
            logits = logits + self.recipe.variance * self._spared()
        if self.recipe.temperature != 1.0:
            logits = logits * self.recipe.temperature
        return self._pooled(logits)

    def _pooled(self, logits: Term) -> Term:
        """Logits `page, head` and perhaps `row`, to `page`."""
        recipe, rows = self.recipe, logits.has("row")
        if recipe.pool == "mass":
            peak = reduce("amax", logits, "page", "row")
            weight = reduce("sum", make("exp", logits - peak), "row")
            share = weight / reduce("sum", weight, "page")
            return reduce(recipe.heads, share, "head")
        if recipe.pool == "logsumexp" and rows:
            peak = reduce("amax", logits, "row")
            inner = reduce("sum", make("exp", logits - peak), "row")
            return reduce(recipe.heads, peak + make("log", inner), "head")
        return reduce(recipe.heads, reduce("amax", logits, "row"), "head")

    def _logit(self, band: Band) -> Term:
        """The band's part of every token's logit, unscaled: `page, head, row`, or `page, head` without tokens."""
        q = channels(self.query, band)
        if band.weight != 1.0:
            q = q * band.weight
        if not band.by_token:
            return self._of_page(band, q)
        x = channels(self.keys, band)
        norm = self._read_norm() if band.scaled else None
        if norm is not None:
            x = x / norm
        centre = self._centre(band, x, norm)
        found = None if centre is None else _dot(q, _state(centre, band.small, "ch"))
        rest = x if centre is None else x - centre
        if band.coder in INTEGERS:
            kept = _dot(q, _state(rest, band.coder, "row" if band.per_channel else "ch"))
        else:
            kept = self._planes(band, q, rest)
        found = kept if found is None else found + kept
        if norm is None:
            return found
        assert self.norm is not None
        return found * _state(self.norm, self.recipe.norm, "row")

    def _read_norm(self) -> Term | None:
        """The tokens' scale that keys are divided by: as it will be read back, where the loop is closed."""
        if self.norm is None or not self.recipe.closed:
            return self.norm
        return rounded(self.norm, self.recipe.norm, "row")

    def _planes(self, band: Band, q: Term, rest: Term) -> Term:
        by_token = band.coder == "range"
        scale = reduce("amax", make("abs", rest), "ch") if by_token else self._spread(rest)
        dtype = "int8" if by_token else band.small
        if self.recipe.closed:
            scale = rounded(scale, dtype, "row" if by_token else "ch")
        stored = _state(scale, dtype, "row" if by_token else "ch")
        part, left, total = q if by_token else q * stored, rest, None
        for factor in self._factors(band):
            plane = factor * _dot(part, load(State(left.type.dims, "bits", left)))
            total = plane if total is None else total + plane
            left = left - scale * factor * make("sign", left)
        assert total is not None
        return stored * total if by_token else total

    def _of_page(self, band: Band, q: Term) -> Term:
        """A band whose tokens are not told apart, in as many parts as it says."""
        keys = make("k")
        if band.rows > 1:
            keys = make("split", keys, dim="token", into="row", parts=band.rows)
        x = channels(keys, band)
        if band.coder == "extrema":
            high, low = (_state(reduce(op, x, "token"), band.small, "ch") for op in ("amax", "amin"))
            return reduce("sum", make("maximum", q * high, q * low), "ch")
        if band.centre == "middle":
            centre = 0.5 * (reduce("amax", x, "token") + reduce("amin", x, "token"))
        else:
            centre = reduce("mean", x, "token")
        return _dot(q, _state(centre, band.small, "ch"))

    def _spared(self) -> Term:
        """Half the variance of the logit within a page, from the spreads that the planes keep: what one sign leaves of
        it, to second order of the exponential."""
        total: Term | None = None
        for band in self.recipe.bands:
            if band.coder != "signs":
                continue
            x = channels(self.keys, band)
            norm = self._read_norm() if band.scaled else None
            if norm is not None:
                x = x / norm
            centre = self._centre(band, x, norm)
            scale = self._spread(x if centre is None else x - centre)
            if self.recipe.closed:
                scale = rounded(scale, band.small, "ch")
            q = channels(self.query, band) * SCALE * _state(scale, band.small, "ch")
            found = reduce("sum", q * q, "ch")
            total = found if total is None else total + found
        assert total is not None
        return const(0.5) * total


def _total(parts: Iterable[Term]) -> Term:
    first, *others = parts
    for more in others:
        first = first + more
    return first


def _dot(q: Term, x: Term) -> Term:
    return reduce("sum", q * x, "ch")


def _state(value: Term, dtype: str, scale: str) -> Term:
    """The state that holds `value`; integers have one scale along `scale`, which is the last dimension unless named."""
    last = value.names[-1]
    if dtype in _LEVELS and not value.names:
        dtype = "bf16"
    return load(
        State(value.type.dims, dtype, value, scale_dim="" if scale == last or len(value.names) < 2 else scale)
    )
