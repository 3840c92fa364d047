"""The normal form of every operator: what lets equal programs meet.

Constants are folded exactly, constant factors and terms float outwards through reductions, and equal
subexpressions are shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from vortex_core.ir.expr import Expr, in_range
from vortex_core.ir.opset import OPS
from vortex_core.ir.reductions import MIRROR, Reductions
from vortex_core.ir.types import Type

_LINEAR = frozenset(name for name, spec in OPS.items() if spec.traits.scale == "linear")
_SCALED = frozenset(name for name, spec in OPS.items() if spec.traits.scale)
_FOLD = {name: spec.traits.scalar for name, spec in OPS.items() if spec.traits.scalar is not None}


class Algebra(Reductions):
    """Builds normal-form expressions."""

    def make(self, op: str, args: Sequence[Expr], attrs: dict[str, Any]) -> Expr:
        """The normal form of one operation on normal-form arguments."""
        found = self._make(op, args, attrs)
        return self.zero(found.type.dims) if found.facts.null and found.facts.finite else found

    def _make(self, op: str, args: Sequence[Expr], attrs: dict[str, Any]) -> Expr:
        match op:
            case "const":
                return self.const(attrs["value"])
            case "neg":
                return self.product([self.const(-1), args[0]])
            case "sub":
                return self.total([args[0], self.product([self.const(-1), args[1]])])
            case "add":
                return self.total(args)
            case "mul":
                return self.product(args)
            case "div":
                return self._quotient(args[0], args[1])
            case "maximum" | "minimum":
                return self._extreme(op, args)
            case "sum":
                return self.summed(args[0], attrs["dims"])
            case "mean":
                return self._mean(args[0], tuple(sorted(attrs["dims"])))
            case "amax" | "amin":
                return self.bounded(op, args[0], attrs["dims"])
            case "abs":
                return self._abs(args[0])
            case "softmax":
                return self.raw(op, [self.without_shift(args[0], attrs["dim"])], **attrs)
            case "eq":
                return self.raw(op, sorted(args, key=lambda e: e.digest))
            case "and" | "or" | "union":
                return self._joined(op, args)
            case "not" if args[0].op == "not":
                return args[0].args[0]
            case "where":
                return self._where(*args)
            case "cast" if attrs["dtype"] == "fp32":
                return args[0]
            case "maxpool":
                return self._pool(args[0], attrs)
            case "concat":
                return self._one_after_another(args, attrs["dim"])
        if op in _SCALED:
            return self._scaled(op, args[0], attrs)
        folded = self._fold(op, args)
        return folded if folded is not None else self.raw(op, args, **attrs)

    def _fold(self, op: str, args: Sequence[Expr]) -> Expr | None:
        if op not in _FOLD or len(args) != 1 or args[0].value is None:
            return None
        try:
            result = float(_FOLD[op](float(args[0].value)))
        except (ValueError, OverflowError, ZeroDivisionError):
            return None
        return self.const(result) if math.isfinite(result) and in_range(Fraction(result)) else None

    def _joined(self, op: str, args: Sequence[Expr]) -> Expr:
        flat: dict[str, Expr] = {}
        stack = list(args)
        while stack and len(flat) < self.width:
            a = stack.pop()
            if a.op == op and self.width > 1:
                stack += a.args
            else:
                flat[a.digest] = a
        flat.update((a.digest, a) for a in stack)
        if op == "union" and any(a.op == "everything" for a in flat.values()):
            return self.raw("everything")
        return self.chain(op, flat.values())

    def _where(self, mask: Expr, a: Expr, b: Expr) -> Expr:
        if mask.op == "not":
            return self._where(mask.args[0], b, a)
        if a is b and set(mask.type.names) <= set(a.type.names):
            return a
        return self.raw("where", [mask, a, b])

    def _one_after_another(self, args: Sequence[Expr], dim: str) -> Expr:
        """However they are nested, parts are joined from the first on; neighbouring ranges of one value are one."""
        parts = [p for a in args for p in self._parts(a, dim)]
        joined = [parts[0]]
        for part in parts[1:]:
            whole = self._neighbours(joined[-1], part, dim)
            joined = [*joined, part] if whole is None else [*joined[:-1], whole]
        found = joined[0]
        for part in joined[1:]:
            if found.type.extent(dim).plus(part.type.extent(dim)) is None:  # a sum of three that no two have
                return self.raw("concat", args, dim=dim)
            found = self.raw("concat", [found, part], dim=dim)
        return found

    def _parts(self, a: Expr, dim: str) -> list[Expr]:
        if a.op != "concat" or a.attr["dim"] != dim:
            return [a]
        return [p for inner in a.args for p in self._parts(inner, dim)]

    def _neighbours(self, a: Expr, b: Expr, dim: str) -> Expr | None:
        """`x[i:j]` followed by `x[j:k]` is `x[i:k]`."""
        both = a.op == b.op == "slice" and a.attr["dim"] == b.attr["dim"] == dim and a.args == b.args
        if not both or str(a.attr["stop"]) != str(b.attr["start"]):
            return None
        if a.attr["start"] == 0 and str(b.attr["stop"]) == str(a.args[0].type.extent(dim)):
            return a.args[0]
        return self.raw("slice", a.args, dim=dim, start=a.attr["start"], stop=b.attr["stop"])

    def _pool(self, a: Expr, attrs: dict[str, Any]) -> Expr:
        if attrs["size"] == 1:
            return a
        value, rest = self.split_constant(a)
        if value == 0 and a.facts.finite:
            return a
        if value <= 0 or not rest:
            return self.raw("maxpool", [a], **attrs)
        return self.product([self.const(value), self.raw("maxpool", [self.chain("mul", rest)], **attrs)])

    def _scaled(self, op: str, a: Expr, attrs: dict[str, Any]) -> Expr:
        """Operators that let a constant factor through (linear) or do not see a positive one."""
        if op == "conv":
            weights = [float(w) + 0.0 for w in attrs["weights"]]
            while len(weights) > 1 and weights[0] == weights[-1] == 0.0 and a.facts.finite:
                weights = weights[1:-1]
            attrs = {**attrs, "weights": tuple(weights)}
            if weights == [1.0]:
                return a
        folded = self._fold(op, [a])
        if folded is not None:
            return folded
        value, rest = self.split_constant(a)
        if value == 0 and op in _LINEAR and rest and a.facts.finite:
            return self.zero(self.raw(op, [a], **attrs).type.dims)
        if value == 1 or value == 0 or not rest or (value < 0 and op not in _LINEAR):
            return self.raw(op, [a], **attrs)
        body = self.raw(op, [self.chain("mul", rest)], **attrs)
        return self.product([self.const(value), body]) if op in _LINEAR else body

    def _quotient(self, a: Expr, b: Expr) -> Expr:
        """a / b as a * (1 / b). What leaves the reciprocal is positive: 1 / (-x) is not -(1 / x) where x is
        0."""
        value, rest = self.split_constant(b)
        if value == 0 or not in_range(1 / value) or len(rest) > self.width:
            return self.product([a, self._reciprocal(b)])
        free = [f for f in rest if f.facts.positive]
        bound = [f for f in rest if not f.facts.positive]
        scale = abs(value)
        if value < 0 and all(f.facts.nonzero for f in bound):
            scale = value
        elif value < 0:
            bound = [*bound, self.const(-1)]
        parts = [a, self.const(1 / scale), *(self._reciprocal(f) for f in free)]
        if bound:
            parts.append(self._reciprocal(self.product(bound)))
        return self.product(parts)

    def _reciprocal(self, e: Expr) -> Expr:
        if e.op == "div" and e.args[0].value == 1 and e.args[1].facts.finite:
            return e.args[1]
        return self.raw("div", [self.const(1), e])

    def _extreme(self, op: str, args: Sequence[Expr]) -> Expr:
        flat: dict[str, Expr] = {}
        numbers: list[Fraction] = []
        stack = list(args)
        while stack:
            a = stack.pop()
            number = a.value
            inner = self._extremes(op, a) if len(flat) < self.width and self.width > 1 else []
            if inner:
                stack += inner
            elif number is not None:
                numbers.append(number)
            else:
                flat[a.digest] = a
        if numbers:
            number = max(numbers) if op == "maximum" else min(numbers)
            flat["number"] = self.const(number)
        parts = list(flat.values())
        if len(parts) == 1:
            return parts[0]
        if all(p.value is not None or (p.facts.null and p.facts.finite) for p in parts):
            values = [p.value or Fraction(0) for p in parts]
            number = max(values) if op == "maximum" else min(values)
            return self.total([self.const(number), self.zero(self.chain(op, parts).type.dims)])
        # max(2 x, y) is 2 max(x, y / 2), and min(x, -x) is -max(x, -x).
        scale, symmetric = self.scale(parts)
        if symmetric and op == "minimum":
            scale = -scale
        if scale == 1 or not in_range(1 / scale):
            return self.chain(op, parts)
        mirrored = op if scale > 0 else MIRROR[op]
        scaled = [self.product([self.const(1 / scale), p]) for p in parts]
        return self.product([self.const(scale), self.chain(mirrored, scaled)])

    def _extremes(self, op: str, a: Expr) -> list[Expr]:
        """Parts of `a` as an extreme of the same kind, none if it is not one. -min(x, y) is max(-x, -y)."""
        if a.op == op:
            return list(a.args)
        value, rest = self.split_constant(a)
        if len(rest) != 1 or rest[0].op != (op if value > 0 else MIRROR[op]):
            return []
        return [self.product([self.const(value), x]) for x in rest[0].args]

    def _abs(self, a: Expr) -> Expr:
        value, rest = self.split_constant(a)
        if not rest:
            return self.const(abs(value))
        body = self.chain("mul", rest)
        return self.product([self.const(abs(value)), body if body.facts.nonneg else self.raw("abs", [body])])

    def _mean(self, a: Expr, dims: tuple[str, ...]) -> Expr:
        parts = [self.summed(a, dims)]
        for d in dims:
            count = self.raw("pages") if d == "page" else self.size(a.type, d)
            parts.append(self._quotient(self.const(1), count))
        return self.product(parts)

    def size(self, t: Type, dim: str) -> Expr:
        """The extent of a dimension as an expression."""
        extent = t.extent(dim)
        return self.raw("extent", extent=str(extent)) if extent.symbol else self.const(extent.factor)
