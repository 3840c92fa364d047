"""The normal form of sums, maxima and minima over named dimensions.

However an author nests reductions of one kind, they are first read as one reduction over all their dimensions.
Then the dimensions are eliminated one at a time, in an order that follows from the operands alone; what does not
vary along a dimension moves out of its reduction. Each step has fewer operands than the one before, so this ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction

from vortex_core.ir.expr import Expr, Sums
from vortex_core.ir.opset import OPS

INCREASING = frozenset(name for name, spec in OPS.items() if spec.traits.increasing == "always")
_TYPICAL = {"": 1, "G": 4, "D": 128, "N": 64, "R": 64, "S": 16, "P": 1024}  # extents, to tell cheap from dear
MIRROR = {name: spec.traits.mirror for name, spec in OPS.items() if spec.traits.mirror}


class Reductions(Sums):
    """Builds reductions in normal form."""

    def summed(self, a: Expr, dims: Iterable[str]) -> Expr:
        """Sum over dims.

        A finite factor without a dimension floats out of its sum. (inf * (1 - 1) is not inf - inf: what is left
        outside must be finite.)
        """
        left = set(dims)
        value, parts = self.split_constant(a)
        n = 0
        while n < len(parts):
            rest, nested = parts[:n] + parts[n + 1 :], parts[n]
            n += 1
            outside = nested.facts.finite and not left & set(nested.type.names)
            if nested.op == "sum" and not outside and _apart(nested, rest) and _finite(rest):
                number, inner = self.split_constant(nested.args[0])
                if self._fits(rest, inner):
                    left |= set(nested.attr["dims"])
                    value, parts, n = value * number, [*rest, *inner], 0
        last = ""  # digest of the sum that is everything there is
        while left:
            d, others, group = _next(left, parts, _leaves_sum)
            left.discard(d)
            body = self.chain("mul", group)
            if others:
                number, found = self.split_constant(self.summed(body, (d,)))
                value, parts = value * number, [*others, *found]
            else:
                parts = [self._reduced("sum", body, d, last)]
                last = parts[0].digest
        return self.product([self.const(value), *parts])

    def bounded(self, op: str, a: Expr, dims: Iterable[str]) -> Expr:
        """Maximum (`amax`) or minimum (`amin`) over dims."""
        left = set(dims)
        if a.op in INCREASING:
            return self.raw(a.op, [self.bounded(op, a.args[0], left)])
        value, rest = self.split_constant(a)
        if value == 0 and _finite(rest):
            return self.zero(tuple(d for d in a.type.dims if d[0] not in left))
        if a.facts.null:  # no bound tells 0 from 0, and NaN wins each
            return self._bounded_product("amax", [a] if value == 0 else self.factors(a), left)
        body = self.chain("mul", rest)
        op = op if value > 0 else MIRROR[op]
        if body.op == "add" and body.width > 1:
            if op == "amin" and self.scale(self.terms(body))[1]:  # x - x is its own negative
                op, value = "amax", -value
            found = self._bounded_sum(op, self.terms(body), left)
        else:
            found = self._bounded_product(op, self.factors(body), left)
        return self.product([self.const(value), found])

    def _bounded_sum(self, op: str, parts: list[Expr], left: set[str]) -> Expr:
        """Finite terms without a dimension leave its bound."""
        n = 0
        while n < len(parts):
            rest = parts[:n] + parts[n + 1 :]
            value, factors = self.split_constant(parts[n])
            n += 1
            if len(factors) != 1 or factors[0].op != (op if value > 0 else MIRROR[op]):
                continue
            (nested,) = factors
            outside = nested.facts.finite and not left & set(nested.type.names)
            if not outside and _apart(nested, rest) and _finite(rest):
                inner = self.terms(self.product([self.const(value), nested.args[0]]))
                if self._fits(rest, inner):
                    left |= set(nested.attr["dims"])
                    parts, n = [*rest, *inner], 0
        last = ""
        while left:
            d, others, group = _next(left, parts, _leaves_sum)
            left.discard(d)
            body = self.total(group)
            if others:
                parts = [*others, *self.terms(self.bounded(op, body, (d,)))]
            else:
                parts = [self._reduced(op, body, d, last)]
                last = parts[0].digest
        return self.total(parts)

    def _bounded_product(self, op: str, parts: list[Expr], left: set[str]) -> Expr:
        """Finite factors that are certainly not negative leave the bounds of dimensions they have not. (0 * inf
        is NaN: where the rest may be infinite, only those that are certainly positive.)"""
        n = 0
        while n < len(parts):
            rest, nested = parts[:n] + parts[n + 1 :], parts[n]
            n += 1
            outside = not left & set(nested.type.names) and nested in _leaves_bound(parts, left)
            if nested.op == op and not outside and _apart(nested, rest):
                number, inner = self.split_constant(nested.args[0])
                if number == 0:
                    number, inner = number + 1, [nested.args[0]]
                if number == 1 and _may_leave(rest, inner) and self._fits(rest, inner):
                    left |= set(nested.attr["dims"])
                    parts, n = [*rest, *inner], 0
        last = ""
        while left:
            d, others, group = _next(left, parts, _leaves_bound)
            left.discard(d)
            body = self.chain("mul", group)
            if others:
                found = self.factors(self.bounded(op, body, (d,)))
                parts = [*others, *found]
                if left and any(f.value is not None for f in found):  # a sum that collapsed
                    return self.raw(op, [self.product(parts)], dims=tuple(sorted(left)))
            else:
                parts = [self._reduced(op, body, d, last)]
                last = parts[0].digest
        return self.product(parts)

    def _reduced(self, op: str, a: Expr, dim: str, last: str) -> Expr:
        """`op` over `dim`, as one with the reduction made just before, `last`, if `a` is that one."""
        if a.digest == last:
            return self.raw(op, a.args, dims=tuple(sorted({dim, *a.attr["dims"]})))
        return self.raw(op, [a], dims=(dim,))

    def _fits(self, rest: Sequence[Expr], inner: Sequence[Expr]) -> bool:
        return not rest or len(rest) + len(inner) <= self.width


def _finite(parts: Iterable[Expr]) -> bool:
    return all(e.facts.finite for e in parts)


def _apart(nested: Expr, rest: Iterable[Expr]) -> bool:
    """Whether no other operand has a dimension that `nested` reduces."""
    own = set(nested.attr["dims"])
    return not any(own & set(e.type.names) for e in rest)


def _leaves_sum(parts: Sequence[Expr], dims: Collection[str]) -> list[Expr]:
    """Factors that leave a sum over `dims`, or terms that leave a bound."""
    return [e for e in parts if e.facts.finite and not any(map(e.has, dims))]


def _leaves_bound(parts: Sequence[Expr], dims: Collection[str]) -> list[Expr]:
    """Factors that leave a bound over `dims`."""
    found = [f for f in _leaves_sum(parts, dims) if f.facts.nonneg]
    if _finite(f for f in parts if f not in found):
        return found
    return [f for f in found if f.facts.positive]


def _next(
    left: set[str], parts: Sequence[Expr], leaves: Callable[[Sequence[Expr], Collection[str]], list[Expr]]
) -> tuple[str, list[Expr], list[Expr]]:
    """The dimension to eliminate next, the operands that leave its reduction, and those that stay. First come
    dimensions that something leaves, then those that one operand alone has, then the cheapest."""

    def cost(d: str) -> tuple[bool, bool, Fraction, str]:
        owners = [p for p in parts if p.has(d)]
        size = Fraction(1)
        for extent in dict(pair for p in owners for pair in p.type.dims).values():
            size *= extent.factor * _TYPICAL[extent.symbol]
        return not leaves(parts, (d,)), len(owners) > 1, size, d

    d = min(left, key=cost)
    others = leaves(parts, (d,))
    return d, others, [e for e in parts if e not in others]


def _may_leave(rest: Sequence[Expr], inner: Sequence[Expr]) -> bool:
    """Whether `rest` times the bound of `inner` is the bound of their product."""
    if _finite(inner):
        return all(f.facts.finite and f.facts.nonneg for f in rest)
    return all(f.facts.positive for f in rest)
