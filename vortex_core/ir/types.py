"""Types of the IR: symbolic extents, named dimensions, domains.

A value's type is a tuple of *named* dimensions plus a kind. Dimensions are unified by name, never by
position, and always stand in one canonical order, so two types are equal when they mean the same thing.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from vortex_core.ir import mistakes

SYMBOLS: Mapping[str, str] = {
    "G": "query heads per kv head",
    "D": "channels of a key (MLA: latent + rotary)",
    "N": "unrotated channels (MLA: the latent)",
    "R": "rotary channels",
    "S": "tokens per page",
    "P": "complete pages of the sequence",
}
# The most that a symbol is in any supported model or page.
LARGEST: Mapping[str, int] = {"G": 64, "D": 1024, "N": 1024, "R": 1024, "S": 128, "P": 1}
# Bits of one stored number, by dtype of a page state.
STORED_BITS: Mapping[str, int] = {
    "fp32": 32, "bf16": 16, "fp16": 16, "fp8_e4m3": 8, "fp8_e5m2": 8, "int8": 8, "int4": 4, "int3": 3, "int2": 2,
    "bits": 1,
}  # fmt: skip
# Dtypes whose numbers are sums of signs, `1 b0 + 2 b1 + 4 b2` with each b -1 or 1, one plane of bits for each.
PLANES: Mapping[str, int] = {"bits": 1, "int2": 2, "int3": 3}


def packed_bytes(dtype: str, count: int) -> int:
    """Bytes that `count` numbers of a dtype of whole or packed numbers take; a plane of bits ends on a whole byte."""
    if dtype in PLANES:
        return PLANES[dtype] * -(-count // 8)
    return -(-count * STORED_BITS[dtype] // 8)


Stage = Literal["cache", "index"]
Kind = Literal["float", "bool", "selection"]
Domain = Literal["const", "query", "page", "state"]
Scope = Literal["page", "request"]  # whose value a state is
SCOPES: tuple[Scope, ...] = get_args(Scope)

PARAM_AXES = ("layer", "kv_head")  # reserved: learned values may have one per layer, and per kv head

_FIRST = ("page", "head")
_LAST = ("token", "dim")
_EXTENT = re.compile(r"(?:([1-9]\d{0,8})\*)?([GDNRSP])?(?:/([1-9]\d{0,8}))?|([1-9]\d{0,8})", re.ASCII)
_TURNED = re.compile(r"^([GDNRSP])\*(\d+)", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")


@dataclass(frozen=True)
class Extent:
    """A dimension's size: a whole number, or a rational multiple of one model symbol, e.g. `S/4`."""

    symbol: str
    factor: Fraction

    def __str__(self) -> str:
        if not self.symbol:
            return str(self.factor)
        head = "" if self.factor.numerator == 1 else f"{self.factor.numerator}*"
        tail = "" if self.factor.denominator == 1 else f"/{self.factor.denominator}"
        return f"{head}{self.symbol}{tail}"

    def __mul__(self, other: int) -> Extent:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        if not 1 <= other < 10**9:
            raise mistakes.BAD_EXTENT.error(found=f"{self} * {str(other)[:20]}")
        return Extent(self.symbol, self.factor * other)

    def __floordiv__(self, other: int) -> Extent:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        if not 1 <= other < 10**9:
            raise mistakes.BAD_EXTENT.error(found=f"{self} // {str(other)[:20]}")
        return Extent(self.symbol, self.factor / other)

    def plus(self, other: Extent) -> Extent | None:
        """The sum, None where it is no multiple of one symbol; unrotated and rotary channels are all channels."""
        if self.symbol == other.symbol:
            return Extent(self.symbol, self.factor + other.factor)
        if {self.symbol, other.symbol} == {"N", "R"} and self.factor == other.factor:
            return Extent("D", self.factor)
        return None

    def over(self, parts: Extent) -> Extent | None:
        """The extent of one of `parts` equal groups; None where that is no fraction of one symbol."""
        if parts.symbol in ("", self.symbol):
            return Extent("" if parts.symbol else self.symbol, self.factor / parts.factor)
        return None

    def resolve(self, sizes: Mapping[str, int]) -> int:
        """The number for concrete symbol sizes.

        Raises:
            VortexError: `VF013`, if it is not a whole number of at least 1 there.
        """
        value = self.factor * (sizes[self.symbol] if self.symbol else 1)
        if value.denominator != 1 or value < 1:
            raise mistakes.NOT_DIVISIBLE.error(
                extent=str(self), value=str(value), sizes=", ".join(f"{k}={v}" for k, v in sizes.items())
            )
        return int(value)

    @classmethod
    def parse(cls, value: int | str | Extent) -> Extent:
        """Read `16`, `"D"`, `"S/4"` or `"3*D/4"`; also `"S // 4"` and `"D*3/4"`.

        Raises:
            VortexError: `VF014`.
        """
        if isinstance(value, Extent):
            return value if type(value) is Extent else Extent(value.symbol, value.factor)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**9:
            return Extent("", Fraction(value))
        if isinstance(value, str) and value:
            text = value.replace(" ", "").replace("//", "/")
            if match := _EXTENT.fullmatch(_TURNED.sub(r"\2*\1", text)):
                times, symbol, over, number = match.groups()
                if number:
                    return Extent("", Fraction(int(number)))
                if symbol:
                    return Extent(symbol, Fraction(int(times or 1), int(over or 1)))
        raise mistakes.BAD_EXTENT.error(found=repr(value)[:60])


def dim_order(name: str) -> tuple[int, str]:
    """Sort key of the canonical order: page, head, others by name, token, dim."""
    if name in _FIRST:
        return _FIRST.index(name), ""
    if name in _LAST:
        return 3 + _LAST.index(name), ""
    return 2, name


def check_dim_name(name: str) -> str:
    """Raises `VF015` unless `name` is a short lower-case identifier."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise mistakes.BAD_DIM_NAME.error(found=repr(name))
    return name


Dims = tuple[tuple[str, Extent], ...]


def make_dims(items: Iterable[tuple[str, Extent]]) -> Dims:
    """Dimensions in canonical order."""
    return tuple(sorted(items, key=lambda item: dim_order(item[0])))


@dataclass(frozen=True)
class Type:
    """What a node yields.

    Attributes:
        dims: `((name, extent), ...)` in canonical order.
        kind: `float` (computed in fp32), `bool`, or `selection` (a set of pages).
        domain: `const` (the same everywhere), `query` (one row per request and kv head), `page` (one per
            logical
            page as well), `state` (one per physical page; cache stage only).
    """

    dims: Dims
    kind: Kind
    domain: Domain

    @property
    def names(self) -> tuple[str, ...]:
        """Dimension names in canonical order."""
        return tuple(name for name, _ in self.dims)

    def extent(self, name: str) -> Extent:
        """Extent of one dimension (which must exist)."""
        return dict(self.dims)[name]

    def __str__(self) -> str:
        inside = ", ".join(name if name == "page" else f"{name}={extent}" for name, extent in self.dims)
        return f"({inside})" if self.kind == "float" else f"{self.kind}({inside})"

    def to_json(self) -> list[object]:
        """`[[name, extent], ...], kind, domain`."""
        return [[[name, str(extent)] for name, extent in self.dims], self.kind, self.domain]


_RANK: Mapping[Domain, int] = {"const": 0, "query": 1, "page": 2, "state": 3}


def join_domain(types: Iterable[Type], dims: Dims) -> Domain:
    """Domain of a pure function of `types` whose result has `dims`: a `page` value whose page dimension was
    reduced away is a `query` value."""
    top: Domain = max((t.domain for t in types), key=lambda d: _RANK[d], default="const")
    if top == "state":
        return "state"
    if any(name == "page" for name, _ in dims):
        return "page"
    return "query" if top == "page" else top


def unify(op: str, types: Iterable[Type]) -> Dims:
    """Broadcast by name: the union of the dimensions.

    Raises:
        VortexError: `VF011`, if one name has two extents.
    """
    found: dict[str, Extent] = {}
    types = tuple(types)
    for t in types:
        for name, extent in t.dims:
            if found.setdefault(name, extent) != extent:
                raise mistakes.DIM_MISMATCH.error(
                    op=op,
                    dim=name,
                    a=str(found[name]),
                    b=str(extent),
                    found=" and ".join(str(t) for t in types),
                )
    return make_dims(found.items())
