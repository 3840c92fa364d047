"""Hash-consed expressions, with sums and products in normal form.

An expression's digest depends only on its meaning-bearing parts, so equal digests mean equal expressions.
Rewrites hold in exact arithmetic for every input, undefined values included (see `facts`); rounding is all
they may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vortex_core.ir.facts import Facts, facts
from vortex_core.ir.opset import OPS
from vortex_core.ir.types import Dims, Extent, Type, make_dims

MAX_WIDTH = (
    64  # sums and products of more parts are not flattened further: x * x, squared again and again, is 2^n x
)


@dataclass(frozen=True, eq=False)
class Expr:
    """One shared expression. Compare by identity or `digest`.

    Attributes:
        width: parts of this sum or product when flattened, 1 for anything else.
        facts: what is certain about its value.
    """

    op: str
    args: tuple[Expr, ...]
    attrs: tuple[tuple[str, Any], ...]
    type: Type
    digest: str
    width: int
    facts: Facts

    @property
    def attr(self) -> dict[str, Any]:
        """Attributes by name."""
        return dict(self.attrs)

    @property
    def value(self) -> Fraction | None:
        """The number, if it is one."""
        if self.op != "const":
            return None
        number = self.attrs[0][1]
        return number if isinstance(number, Fraction) else Fraction(number)

    def has(self, dim: str) -> bool:
        """Whether it varies along `dim`."""
        return dim in self.type.names


def in_range(value: Fraction) -> bool:
    """Whether a folded constant is an ordinary fp32 number."""
    return value == 0 or Fraction(1, 10**30) <= abs(value) <= 10**30


class Sums:
    """Builds expressions. One instance per program, so sharing is by identity.

    Args:
        state_digest: identity of each state, by name; loads are told apart by it, not by the author's names.
        finite_states: states that certainly hold finite numbers.
        param_digest: identity of each learned parameter, by name.
        width: parts up to which sums and products are flattened; 1 keeps every one as written.
    """

    def __init__(
        self,
        state_digest: Mapping[str, str],
        finite_states: Collection[str] = (),
        param_digest: Mapping[str, str] | None = None,
        width: int = MAX_WIDTH,
    ) -> None:
        self.state_digest = state_digest
        self.finite_states = finite_states
        self.param_digest = param_digest or {}
        self.width = width
        self._known: dict[str, Expr] = {}
        self._made: dict[
            tuple[object, ...], Expr
        ] = {}  # the same by arguments, which needs no hashing of text
        self._split: dict[str, tuple[Fraction, list[Expr]]] = {}
        self._primitives: dict[str, tuple[Fraction, Expr]] = {}

    # ---- construction -------------------------------------------------------------------------------------

    def raw(self, op: str, args: Sequence[Expr] = (), **attrs: Any) -> Expr:
        """The shared expression for exactly this operator, without simplifying."""
        pairs = tuple(sorted(attrs.items()))
        made = (op, *map(id, args), pairs)
        if (again := self._made.get(made)) is not None:
            return again
        shown: object = pairs
        if op == "const":
            shown = repr(float(attrs["value"]))
        elif op == "load":
            shown = (self.state_digest[attrs["name"]], attrs["dims"])
        elif op == "param":
            shown = (self.param_digest[attrs["name"]], attrs["dims"])
        text = repr((op, [a.digest for a in args], shown))
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        found = self._known.get(digest)
        if found is None:
            spec = OPS[op]
            plain = {"value": float(attrs["value"])} if op == "const" else attrs
            kind = spec.infer(spec, [a.type for a in args], plain)
            width = 1
            if op in ("add", "mul"):
                width = sum(a.width if a.op == op else 1 for a in args)
                width = width if width <= self.width else 1
            parts = [f for a in args for f in self.factors(a)] if op == "mul" else ()
            known = facts(op, args, attrs, parts, attrs.get("name") in self.finite_states)
            found = self._known[digest] = Expr(op, tuple(args), pairs, kind, digest, width, known)
        self._made[made] = found
        return found

    def const(self, value: Fraction | float) -> Expr:
        """A number. Floats stand for their shortest decimal form, so that 0.1 * 10 is 1."""
        return self.raw("const", value=value if isinstance(value, Fraction) else Fraction(repr(float(value))))

    # ---- sums and products --------------------------------------------------------------------------------

    def _flat(self, op: str, e: Expr) -> list[Expr]:
        found: list[Expr] = []
        stack = [e]
        while stack:
            a = stack.pop()
            if a.op == op and a.width > 1:
                stack += reversed(a.args)
            else:
                found.append(a)
        return found

    def terms(self, e: Expr) -> list[Expr]:
        """Terms of a sum."""
        return self._flat("add", e)

    def factors(self, e: Expr) -> list[Expr]:
        """Factors of a product."""
        return self._flat("mul", e)

    def split_constant(self, e: Expr) -> tuple[Fraction, list[Expr]]:
        """`e` as number times other factors. Of a sum, the number is the weight of one term, that of the least
        digest, so that 2 a - 2 b, a - b and b - a differ by a number only."""
        known = self._split.get(e.digest)
        if known is not None:
            return known[0], list(known[1])
        value, rest = Fraction(1), []
        for f in self.factors(e):
            number = f.value
            if number is not None:
                value *= number
            elif f.op == "add" and f.width > 1:
                weight, primitive = self._primitive(f)
                value *= weight
                rest.append(primitive)
            else:
                rest.append(f)
        self._split[e.digest] = value, list(rest)
        return value, rest

    def _primitive(self, e: Expr) -> tuple[Fraction, Expr]:
        found = self._primitives.get(e.digest)
        if found is None:
            weight, _ = self.scale(self.terms(e))
            found = Fraction(1), e
            if weight != 1 and in_range(1 / weight):
                scaled = [self.product([self.const(1 / weight), t]) for t in self.terms(e)]
                primitive = self.total(scaled)
                if primitive.op == "add" and primitive.width == e.width:
                    found = weight, primitive
            self._primitives[e.digest] = found
        return found

    def scale(self, parts: Iterable[Expr]) -> tuple[Fraction, bool]:
        """The number that parts of a sum or extreme are measured in: that of the part whose digest is least.

        Undefined values do not collect, so one part may occur with several numbers: then the largest, its sign by
        what is left. Second, whether the parts negated are the same parts.
        """
        split = [(rest, v) for v, rest in map(self.split_constant, parts) if v]
        found = [(self.chain("mul", rest).digest if rest else "~", v) for rest, v in split]
        least = min((d for d, _ in found), default="~")
        if least == "~":
            return Fraction(1), False
        size = max(abs(v) for d, v in found if d == least)
        as_is, negated = sorted(found), sorted((d, -v) for d, v in found)
        return (size if as_is >= negated else -size), as_is == negated

    def chain(self, op: str, args: Iterable[Expr]) -> Expr:
        ordered = sorted(args, key=lambda e: e.digest)
        result = ordered[0]
        for following in ordered[1:]:
            result = self.raw(op, [result, following])
        return result

    def product(self, args: Iterable[Expr]) -> Expr:
        """Product in normal form: one number first, the rest sorted; numbers distribute over sums."""
        args = list(args)
        value, rest = Fraction(1), []
        for a in args:
            v, r = self.split_constant(a)
            value *= v
            rest += r
        if not in_range(value) or len(rest) > self.width:
            return self.chain("mul", args)
        if not rest:
            return self.const(value)
        body = self.chain("mul", rest)
        if value == 0 or body.facts.null:
            return self._nothing(body)
        if value == 1:
            return body
        if body.op == "add" and body.width > 1:
            return self.total([self.product([self.const(value), t]) for t in self.terms(body)])
        return self.raw("mul", [self.const(value), body])

    def total(self, args: Iterable[Expr]) -> Expr:
        """Sum in normal form: like terms collected, zero dropped, sorted."""
        args = list(args)
        terms = [t for a in args for t in self.terms(a)]
        if len(terms) > self.width:
            return self.chain("add", args)
        number = Fraction(0)
        weights: dict[tuple[str, int], Fraction] = {}
        bodies: dict[tuple[str, int], Expr] = {}
        for term in terms:
            value, rest = self.split_constant(term)
            if not rest:
                number += value
                continue
            body = self.chain("mul", rest)
            # inf - inf is not 0: only certainly finite values cancel.
            key = body.digest, 0 if body.facts.finite else (value > 0) - (value < 0)
            weights[key] = value if body.facts.null else weights.get(key, Fraction(0)) + value
            bodies[key] = body
        if not in_range(number) or not all(map(in_range, weights.values())):
            return self.chain("add", terms)
        kept = [k for k, w in weights.items() if w != 0 or not bodies[k].facts.finite]
        # Where only cancelled terms carried a dimension, a zero carries it on: types must not change.
        names = {n for k in kept for n in bodies[k].type.names}
        missing = {d: e for b in bodies.values() for d, e in b.type.dims if d not in names}
        parts = [
            bodies[k] if weights[k] == 1 else self.raw("mul", [self.const(weights[k]), bodies[k]])
            for k in kept
        ]
        if missing:
            parts.append(self.zero(make_dims(missing.items())))
        if number != 0 or not parts:
            parts.append(self.const(number))
        return self.chain("add", parts)

    def _nothing(self, product: Expr) -> Expr:
        """0 times a product: 0 where its factors are finite, else NaN, so that only these others matter."""
        wild = {f.digest: f for f in self.factors(product) if not f.facts.finite}
        if not wild:
            return self.zero(product.type.dims)
        missing = [d for d in product.type.dims if not any(f.has(d[0]) for f in wild.values())]
        body = self.chain("mul", [*wild.values(), *self._carriers(missing)])
        return body if body.facts.null else self.raw("mul", [self.const(0), body])

    def _carriers(self, dims: Iterable[tuple[str, Extent]]) -> list[Expr]:
        return [
            self.raw("position") if d == "page" else self.raw("iota", dim=d, extent=str(e)) for d, e in dims
        ]

    def zero(self, dims: Dims) -> Expr:
        """Zero, with these dimensions."""
        carriers = self._carriers(dims)
        return self.raw("mul", [self.const(0), self.chain("mul", carriers)]) if carriers else self.const(0)

    def without_shift(self, e: Expr, dim: str) -> Expr:
        """`e` without the finite terms that are the same all along `dim`; its type stays."""
        terms = self.terms(e)
        rest = [t for t in terms if t.has(dim) or not t.facts.finite]
        if not rest or len(rest) == len(terms):
            return e
        return self.total([*rest, self.zero(e.type.dims)])
