"""Hash-consed expressions: the form in which programs are simplified.

`Algebra.make` builds an expression in normal form: constants folded, sums and products flattened and sorted,
constant factors and terms floated outwards through reductions, equal subexpressions shared. An expression's
digest depends only on its meaning-bearing parts, so equal digests mean equal expressions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vortex_core.ir.opset import OPS
from vortex_core.ir.types import Type


@dataclass(frozen=True, eq=False)
class Expr:
    """One shared expression. Compare by identity or `digest`."""

    op: str
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type
    digest: str

    @property
    def attr(self) -> dict[str, Any]:
        """Attributes by name."""
        return dict(self.attrs)

    @property
    def value(self) -> float | None:
        """The number, if it is one."""
        return float(self.attr["value"]) if self.op == "const" else None

    def has(self, dim: str) -> bool:
        """Whether it varies along `dim`."""
        return dim in self.type.names


_INCREASING = ("exp", "sigmoid", "tanh")
_FOLD = {
    "exp": math.exp,
    "log": math.log,
    "sqrt": math.sqrt,
    "abs": abs,
    "tanh": math.tanh,
    "floor": math.floor,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "sign": lambda x: -1.0 if x < 0 else 1.0,
    "div": lambda x, y: x / y,
    "maximum": max,
    "minimum": min,
}


class Algebra:
    """Builds normal-form expressions. One instance per program, so sharing is by identity.

    Args:
        state_digest: identity of each state, by name; loads are told apart by it, not by the author's names.
    """

    def __init__(self, state_digest: dict[str, str]) -> None:
        self.state_digest = state_digest
        self._known: dict[str, Expr] = {}

    # ---- construction ---------------------------------------------------------------------------------------

    def raw(self, op: str, args: Sequence[Expr] = (), **attrs: Any) -> Expr:
        """The shared expression for exactly this operator, without simplifying."""
        pairs = tuple(sorted(attrs.items()))
        shown = pairs
        if op == "load":
            shown = (("state", self.state_digest[attrs["name"]]), ("dims", attrs["dims"]))
        text = repr((op, [a.digest for a in args], shown))
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        found = self._known.get(digest)
        if found is None:
            spec = OPS[op]
            kind = spec.infer(spec, [a.type for a in args], attrs)
            found = self._known[digest] = Expr(op, tuple(args), pairs, kind, digest)
        return found

    def const(self, value: float) -> Expr:
        """A number; -0.0 is 0.0."""
        return self.raw("const", value=float(value) + 0.0)

    def make(self, op: str, args: Sequence[Expr], attrs: dict[str, Any]) -> Expr:
        """The normal form of one operation on normal-form arguments."""
        match op:
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
                return self._sum(args[0], tuple(attrs["dims"]))
            case "mean":
                return self._mean(args[0], tuple(attrs["dims"]))
            case "amax" | "amin":
                return self._bound(op, args[0], tuple(attrs["dims"]))
            case "abs":
                return self._abs(args[0])
            case "softmax":
                rest = [t for t in self.terms(args[0]) if t.has(attrs["dim"])]
                return self.raw(op, [self.total(rest) if rest else args[0]], **attrs)
            case "eq" | "and" | "or" | "union":
                return self._commuting(op, args)
            case "not" if args[0].op == "not":
                return args[0].args[0]
            case "where" if args[0].op == "not":
                return self.make("where", [args[0].args[0], args[2], args[1]], {})
            case "cast" if attrs["dtype"] == "fp32":
                return args[0]
        folded = self._fold(op, args)
        return folded if folded is not None else self.raw(op, args, **attrs)

    def _fold(self, op: str, args: Sequence[Expr]) -> Expr | None:
        values = [a.value for a in args]
        if op not in _FOLD or not args or any(v is None for v in values):
            return None
        try:
            result = float(_FOLD[op](*values))  # type: ignore[operator]  # arity is the operator's own
        except (ValueError, OverflowError, ZeroDivisionError):
            return None
        return self.const(result) if math.isfinite(result) and abs(result) < 1e30 else None

    def _commuting(self, op: str, args: Sequence[Expr]) -> Expr:
        a, b = sorted(args, key=lambda e: e.digest)
        if op in ("and", "or", "union") and a is b:
            return a
        if op == "union" and "everything" in (a.op, b.op):
            return a if a.op == "everything" else b
        return self.raw(op, [a, b])

    # ---- sums and products ----------------------------------------------------------------------------------

    def terms(self, e: Expr) -> list[Expr]:
        """Terms of a sum."""
        return [t for a in e.args for t in self.terms(a)] if e.op == "add" else [e]

    def factors(self, e: Expr) -> list[Expr]:
        """Factors of a product."""
        return [f for a in e.args for f in self.factors(a)] if e.op == "mul" else [e]

    def split_constant(self, e: Expr) -> tuple[float, list[Expr]]:
        """`e` as number times other factors."""
        value, rest = 1.0, []
        for f in self.factors(e):
            if f.value is None:
                rest.append(f)
            else:
                value *= f.value
        return value, rest

    def _chain(self, op: str, args: Iterable[Expr]) -> Expr:
        ordered = sorted(args, key=lambda e: e.digest)
        result = ordered[0]
        for nxt in ordered[1:]:
            result = self.raw(op, [result, nxt])
        return result

    def product(self, args: Iterable[Expr]) -> Expr:
        """Product in normal form: one number first, the rest sorted; numbers distribute over sums."""
        value, rest = 1.0, []
        for a in args:
            v, r = self.split_constant(a)
            value *= v
            rest += r
        if not math.isfinite(value) or not rest:
            return (
                self.const(value) if math.isfinite(value) and abs(value) < 1e30 else self._chain("mul", args)
            )
        body = self._chain("mul", rest)
        if value == 1.0:
            return body
        if body.op == "add":
            return self.total([self.product([self.const(value), t]) for t in self.terms(body)])
        return self.raw("mul", [self.const(value), body])

    def total(self, args: Iterable[Expr]) -> Expr:
        """Sum in normal form: like terms collected, zero dropped, sorted."""
        number = 0.0
        weights: dict[str, float] = {}
        bodies: dict[str, Expr] = {}
        for term in (t for a in args for t in self.terms(a)):
            value, rest = self.split_constant(term)
            if not rest:
                number += value
                continue
            body = self._chain("mul", rest)
            weights[body.digest] = weights.get(body.digest, 0.0) + value
            bodies[body.digest] = body
        # A term that cancels is kept as 0 * x where it alone carries a dimension: types must not change.
        kept = [d for d in weights if weights[d] != 0.0]
        names = {n for d in kept for n in bodies[d].type.names}
        kept += [d for d in weights if weights[d] == 0.0 and not set(bodies[d].type.names) <= names]
        parts = [
            bodies[d] if weights[d] == 1.0 else self.raw("mul", [self.const(weights[d]), bodies[d]])
            for d in kept
        ]
        if number != 0.0 or not parts:
            parts.append(self.const(number))
        return self._chain("add", parts)

    def _quotient(self, a: Expr, b: Expr) -> Expr:
        """a / b as a * (1 / b), so that every division has the numerator 1."""
        value, rest = self.split_constant(b)
        if value == 0.0:
            return self.raw("div", [a, b])
        return self.product([a, self.const(1.0 / value), *(self._reciprocal(f) for f in rest)])

    def _reciprocal(self, e: Expr) -> Expr:
        if e.op == "div" and e.args[0].value == 1.0:
            return e.args[1]
        return self.raw("div", [self.const(1.0), e])

    def _extreme(self, op: str, args: Sequence[Expr]) -> Expr:
        flat: dict[str, Expr] = {}
        stack = list(args)
        while stack:
            a = stack.pop()
            if a.op == op:
                stack += a.args
            else:
                flat[a.digest] = a
        parts = list(flat.values())
        if len(parts) == 1:
            return parts[0]
        if all(p.value is not None for p in parts):
            return self.const(_FOLD[op](*(p.value for p in parts)))
        split = [self.split_constant(p) for p in parts]
        scale = split[0][0]
        if scale != 1.0 and scale != 0.0 and all(v == scale and rest for v, rest in split):
            inner = op if scale > 0 else {"maximum": "minimum", "minimum": "maximum"}[op]
            return self.product(
                [self.const(scale), self._extreme(inner, [self._chain("mul", r) for _, r in split])]
            )
        return self._chain(op, parts)

    def _abs(self, a: Expr) -> Expr:
        value, rest = self.split_constant(a)
        if not rest:
            return self.const(abs(value))
        body = self._chain("mul", rest)
        return self.product(
            [self.const(abs(value)), body if self.nonnegative(body) else self.raw("abs", [body])]
        )

    # ---- reductions -----------------------------------------------------------------------------------------

    def _sum(self, a: Expr, dims: tuple[str, ...]) -> Expr:
        if a.op == "sum":
            return self._sum(a.args[0], tuple(sorted({*dims, *a.attr["dims"]})))
        left = set(dims)
        outside: list[Expr] = []
        inside = self.factors(a)
        # A factor without any summed dimension floats out; a dimension that only one factor has is summed there.
        changed = True
        while changed and left:
            changed = False
            for f in list(inside):
                if len(inside) > 1 and not left & set(f.type.names):
                    inside.remove(f)
                    outside.append(f)
                    changed = True
            for d in sorted(left):
                owners = [f for f in inside if f.has(d)]
                if len(owners) == 1 and len(inside) > 1:
                    inside.remove(owners[0])
                    inside.append(self._sum(owners[0], (d,)))
                    left.discard(d)
                    changed = True
        body = self._chain("mul", inside)
        if left:
            body = self.raw("sum", [body], dims=tuple(sorted(left)))
        return self.product([*outside, body])

    def _mean(self, a: Expr, dims: tuple[str, ...]) -> Expr:
        parts = [self._sum(a, dims)]
        for d in dims:
            count = self.raw("pages") if d == "page" else self.size(a.type, d)
            parts.append(self._quotient(self.const(1.0), count))
        return self.product(parts)

    def size(self, t: Type, dim: str) -> Expr:
        """The extent of a dimension as an expression."""
        extent = t.extent(dim)
        return self.raw("extent", extent=str(extent)) if extent.symbol else self.const(float(extent.factor))

    def _bound(self, op: str, a: Expr, dims: tuple[str, ...]) -> Expr:
        if a.op == op:
            return self._bound(op, a.args[0], tuple(sorted({*dims, *a.attr["dims"]})))
        gone = set(dims)
        if a.op in _INCREASING:
            return self.raw(a.op, [self._bound(op, a.args[0], dims)])
        terms = self.terms(a)
        free = [t for t in terms if not gone & set(t.type.names)]
        if free and len(free) < len(terms):
            bound = [t for t in terms if t not in free]
            carried = {n for t in bound for n in t.type.names}
            if gone <= carried:
                return self.total([*free, self._bound(op, self.total(bound), dims)])
        value, rest = self.split_constant(a)
        if rest:
            out = [f for f in rest if not gone & set(f.type.names) and self.nonnegative(f)]
            keep = [f for f in rest if f not in out]
            carried = {n for f in keep for n in f.type.names}
            if keep and (out or value not in (1.0, 0.0)) and value != 0.0 and gone <= carried:
                inner = op if value > 0 else {"amax": "amin", "amin": "amax"}[op]
                return self.product(
                    [self.const(value), *out, self._bound(inner, self._chain("mul", keep), dims)]
                )
        return self.raw(op, [a], dims=tuple(sorted(gone)))

    # ---- facts ----------------------------------------------------------------------------------------------

    def nonnegative(self, e: Expr) -> bool:
        """Whether it is certainly >= 0."""
        match e.op:
            case "const":
                return (e.value or 0.0) >= 0
            case (
                "exp"
                | "sqrt"
                | "abs"
                | "sigmoid"
                | "softmax"
                | "extent"
                | "pages"
                | "length"
                | "position"
                | "mass"
                | "iota"
            ):
                return True
            case "add" | "minimum" | "div" | "sum" | "amax" | "amin" | "maxpool" | "floor" | "mean":
                return all(self.nonnegative(a) for a in e.args)
            case "maximum":
                return any(self.nonnegative(a) for a in e.args)
            case "mul":
                counts: dict[str, int] = {}
                for f in self.factors(e):
                    if not self.nonnegative(f):
                        counts[f.digest] = counts.get(f.digest, 0) + 1
                return all(n % 2 == 0 for n in counts.values())
        return False

    def positive(self, e: Expr) -> bool:
        """Whether it is certainly > 0."""
        match e.op:
            case "const":
                return (e.value or 0.0) > 0
            case "exp" | "sigmoid" | "extent":
                return True
            case "div" | "mul" | "minimum" | "amax" | "amin":
                return all(self.positive(a) for a in e.args)
            case "add" | "maximum":
                return all(self.nonnegative(a) for a in e.args) and any(self.positive(a) for a in e.args)
        return False
