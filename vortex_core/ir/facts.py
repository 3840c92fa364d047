"""What is certain about a value for all finite inputs. Rewrites that need a fact ask for it here.

Programs mean what exact arithmetic says, extended by IEEE rules where a value is undefined: x / 0 is +-inf by
the sign of x (zero has no sign), 0 / 0, the logarithm of a negative number and inf - inf are NaN. So 0 * x is
0 only where x is certainly finite, and a scale may leave a comparison only where it is certainly positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vortex_core.ir.opset import OPS


@dataclass(frozen=True)
class Facts:
    """Certainties.

    Attributes:
        finite: a finite number; masks count as finite.
        nonneg: >= 0, or NaN.
        positive: finite and > 0.
        nonzero: finite and not 0.
        null: 0, or NaN: no number but 0 changes it.
    """

    finite: bool = False
    nonneg: bool = False
    positive: bool = False
    nonzero: bool = False
    null: bool = False


class Value(Protocol):
    """What a fact may look at: an expression."""

    @property
    def op(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def facts(self) -> Facts: ...


def facts(
    op: str, args: Sequence[Value], attrs: dict[str, Any], factors: Iterable[Value], defined: bool
) -> Facts:
    """Facts of `op(args)`.

    Args:
        factors: the flattened factors of a product, else empty.
        defined: for a load, whether what was written is certainly finite.
    """
    found = _facts(op, args, attrs, factors, defined)
    return replace(found, null=True, nonneg=True) if _null(op, args, attrs) else found


def _null(op: str, args: Sequence[Value], attrs: dict[str, Any]) -> bool:
    match op:
        case "const":
            return bool(attrs["value"] == 0)
        case "mul":
            return any(a.facts.null for a in args)
        case "div":
            return args[0].facts.null
        case "where":
            return all(a.facts.null for a in args[1:])
    return OPS[op].traits.keeps_zero and all(a.facts.null for a in args)


def _facts(
    op: str, args: Sequence[Value], attrs: dict[str, Any], factors: Iterable[Value], defined: bool
) -> Facts:
    if op == "const":
        v = attrs["value"]
        return Facts(True, v >= 0, v > 0, v != 0)
    if op == "load":
        return Facts(defined)
    traits = OPS[op].traits
    if not args:
        above = traits.sign == "positive"
        return Facts(True, traits.sign != "", above, above)
    if op == "sign":  # the sign of NaN is 1, too
        return Facts(True, args[0].facts.nonneg, args[0].facts.positive, True)
    if op == "where":
        return _all(args[1:])
    if traits.picks:
        return _all(args)

    finite = all(a.facts.finite for a in args)
    nonneg = all(a.facts.nonneg for a in args)
    positive = all(a.facts.positive for a in args)
    nonzero = all(a.facts.nonzero for a in args)
    if traits.sign:
        above = finite and traits.sign == "positive"
        return Facts(finite, True, above, above)
    match op:
        case "div":
            defined = args[0].facts.finite and args[1].facts.nonzero
            return Facts(defined, nonneg, positive, nonzero)
        case "log":
            return Facts(positive)
        case "sqrt":
            return Facts(finite and nonneg, True, positive, positive)
        case "abs":
            return Facts(finite, True, nonzero, nonzero)
        case "mul":
            return Facts(finite, nonneg or _even(factors), positive, nonzero)
        case "minimum":
            return Facts(finite, nonneg, positive, positive)
        case "maximum":
            some = finite and any(a.facts.positive for a in args)
            return Facts(finite, any(a.facts.nonneg for a in args), some, some)
        case "add":
            some = finite and nonneg and any(a.facts.positive for a in args)
            return Facts(finite, nonneg, some, some)
        case "sum" | "mean" | "cumsum":
            return Facts(finite, nonneg, positive, positive)
        case "tanh":
            return Facts(finite, nonneg, positive, nonzero)
        case "floor" | "cast":  # small values may round to 0
            return Facts(finite, nonneg)
        case "conv":
            return Facts(finite, nonneg and all(w >= 0 for w in attrs["weights"]))
    return Facts(finite)


def _all(args: Sequence[Value]) -> Facts:
    def every(what: Callable[[Facts], bool]) -> bool:
        return all(what(a.facts) for a in args)

    return Facts(
        every(lambda f: f.finite),
        every(lambda f: f.nonneg),
        every(lambda f: f.positive),
        every(lambda f: f.nonzero),
    )


def _even(factors: Iterable[Value]) -> bool:
    """Whether every factor of unknown sign occurs an even number of times."""
    odd: set[str] = set()
    for f in factors:
        if not f.facts.nonneg:
            odd ^= {f.digest}
    return not odd
