"""Typing rules of the operators: which dimensions, kinds and attributes are legal, and what results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vortex_core.ir import mistakes
from vortex_core.ir.types import (
    LARGEST,
    PARAM_AXES,
    SCOPES,
    Dims,
    Domain,
    Extent,
    Kind,
    Type,
    check_dim_name,
    join_domain,
    make_dims,
    unify,
)

if TYPE_CHECKING:
    from vortex_core.ir.opset import OpSpec

Attrs = Mapping[str, Any]
Infer = Callable[["OpSpec", Sequence[Type], Attrs], Type]
ROUND_DTYPES = ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2")


def want(spec: OpSpec, types: Sequence[Type], kind: Kind) -> None:
    """Every type has the kind, or `VF012`."""
    for t in types:
        if t.kind != kind:
            remedy = "compare first, e.g. x > 0" if kind == "bool" else "use ops.where(mask, a, b)"
            raise mistakes.NOT_BOOL.error(op=spec.name, want=kind, found=str(t), remedy=remedy)


def pointwise(kind_in: Kind, kind_out: Kind) -> Infer:
    """Elementwise: dimensions are united by name."""

    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        want(spec, types, kind_in)
        dims = unify(spec.name, types)
        return Type(dims, kind_out, join_domain(types, dims))

    return infer


def where(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A mask and two floats."""
    want(spec, types[:1], "bool")
    want(spec, types[1:], "float")
    dims = unify(spec.name, types)
    return Type(dims, "float", join_domain(types, dims))


def known_dim(op: str, t: Type, dim: object) -> str:
    """`dim` as a dimension of `t`, or `VF010`."""
    if not isinstance(dim, str) or dim not in t.names:
        raise mistakes.UNKNOWN_DIM.error(
            op=op, dim=dim, found=str(t), known=", ".join(t.names) or "none: it is a scalar"
        )
    return dim


def reduce(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """The named dimensions go."""
    want(spec, types, "float")
    (t,) = types
    gone = {known_dim(spec.name, t, d) for d in attrs["dims"]}
    if not gone or len(gone) != len(attrs["dims"]):
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="dims", found=attrs["dims"], want="one or more different dimension names"
        )
    dims: Dims = tuple(d for d in t.dims if d[0] not in gone)
    return Type(dims, "float", join_domain(types, dims))


def along(check: Callable[[OpSpec, Type, Attrs], None] | None = None, kind: Kind = "float") -> Infer:
    """The type stays; `dim` must exist."""

    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        want(spec, types, "float")
        (t,) = types
        known_dim(spec.name, t, attrs["dim"])
        if check is not None:
            check(spec, t, attrs)
        return Type(t.dims, kind, t.domain)

    return infer


def number(op: str, name: str, value: object, low: float, high: float, whole: bool = False) -> float:
    """A number attribute within bounds, or `VF016`."""
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        want = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
        raise mistakes.BAD_ATTRIBUTE.error(op=op, name=name, found=repr(value), want=want)
    return value


def check_conv(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    """An odd number of finite weights."""
    weights = attrs["weights"]
    if not isinstance(weights, tuple) or len(weights) % 2 == 0 or len(weights) > 31:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="weights", found=repr(weights), want="an odd number of weights, at most 31"
        )
    for w in weights:
        number(spec.name, "weights", w, -1e6, 1e6)


def check_pool(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    """An odd window."""
    if number(spec.name, "size", attrs["size"], 1, 31, whole=True) % 2 == 0:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="size", found=attrs["size"], want="an odd whole number from 1 to 31"
        )


def check_largest(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    """Along any dimension but page."""
    number(spec.name, "k", attrs["k"], 1, 4096, whole=True)
    if attrs["dim"] == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="dim",
            found="page",
            want="a dimension other than page (pages are chosen with ops.topk)",
        )


MAX_RANK, MAX_ROWS = 16, 128  # of a decomposition: its Gram matrix is held whole


def principal(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """The rows go, a few directions come: of a matrix of two dimensions."""
    want(spec, types, "float")
    (t,) = types
    over, dim = known_dim(spec.name, t, attrs["over"]), known_dim(spec.name, t, attrs["dim"])
    if len(t.dims) != 2 or over == dim:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="x",
            found=str(t),
            want="a tensor of two dimensions, rows and channels, each named once",
        )
    rows = t.extent(over)
    if rows.factor * LARGEST.get(rows.symbol, 1) > MAX_ROWS:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="over",
            found=f"{over}={rows}",
            want=f"rows that are at most {MAX_ROWS} in any model",
        )
    into = check_dim_name(attrs["into"])
    if into in ("page", "token", "head", dim):
        raise mistakes.DIM_EXISTS.error(op=spec.name, dim=into, found=str(t))
    rank = int(number(spec.name, into, attrs["rank"], 1, MAX_RANK, whole=True))
    return Type(make_dims([(into, Extent.parse(rank)), (dim, t.extent(dim))]), "float", t.domain)


def slice_(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A range of one dimension."""
    want(spec, types, "float")
    (t,) = types
    dim = known_dim(spec.name, t, attrs["dim"])
    if dim == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="dim",
            found="page",
            want="a dimension other than page (mask with ops.position() instead)",
        )
    start, stop = attrs["start"], attrs["stop"]
    first = Extent("", Fraction(0)) if start == 0 else Extent.parse(start)
    last = Extent.parse(stop)
    full = t.extent(dim)
    size = _difference(first, last)
    if size is None or _exceeds(last, full):
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="range",
            found=f"{start}:{stop} of {dim}={full}",
            want=f"an increasing range inside {dim}={full}, both ends numbers or multiples of one symbol",
        )
    return Type(make_dims([(n, size if n == dim else e) for n, e in t.dims]), "float", t.domain)


def _difference(first: Extent, last: Extent) -> Extent | None:
    if first.factor == 0:
        return last
    if first.symbol != last.symbol or last.factor <= first.factor:
        return None
    return Extent(last.symbol, last.factor - first.factor)


def _exceeds(a: Extent, b: Extent) -> bool:
    """Whether `a` certainly exceeds `b`; extents of different symbols are checked when the geometry is
    known."""
    return a.symbol == b.symbol and a.factor > b.factor


def channels(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A group of the channels of a key."""
    want(spec, types, "float")
    (t,) = types
    known_dim(spec.name, t, "dim")
    if attrs["group"] not in ("nope", "rope"):
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="group", found=repr(attrs["group"]), want='"nope" or "rope"'
        )
    if str(t.extent("dim")) != "D":
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="x", found=str(t), want="a tensor with all channels, dim=D"
        )
    size = Extent.parse("N" if attrs["group"] == "nope" else "R")
    return Type(make_dims([(n, size if n == "dim" else e) for n, e in t.dims]), "float", t.domain)


def split(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """One dimension becomes two."""
    want(spec, types, "float")
    (t,) = types
    dim = known_dim(spec.name, t, attrs["dim"])
    into = check_dim_name(attrs["into"])
    if dim == "page" or into in t.names or into in ("page", "token", "head"):
        raise mistakes.DIM_EXISTS.error(op=spec.name, dim=into, found=str(t))
    parts = attrs["parts"]
    if not isinstance(parts, str):
        parts = int(number(spec.name, "parts", parts, 1, 1024, whole=True))
    groups = Extent.parse(parts)
    inner = t.extent(dim).over(groups)
    if inner is None:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name=into,
            found=parts,
            want=f"a whole number or a fraction of {dim}={t.extent(dim)}",
        )
    if not inner.symbol and inner.factor.denominator != 1:
        raise mistakes.NOT_DIVISIBLE.error(
            extent=str(t.extent(dim)), value=str(inner.factor), sizes=f"{parts} parts"
        )
    dims = [(n, inner if n == dim else e) for n, e in t.dims] + [(into, groups)]
    return Type(make_dims(dims), "float", t.domain)


def concat(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """Two ranges of one dimension, one after the other; the other dimensions are united by name."""
    want(spec, types, "float")
    dim = attrs["dim"]
    first, second = (t.extent(known_dim(spec.name, t, dim)) for t in types)
    if dim == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="dim", found="page", want="a dimension other than page"
        )
    both = first.plus(second)
    if both is None:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name=dim,
            found=f"{first} and {second}",
            want="two multiples of one symbol, or two numbers",
        )
    rest = [Type(tuple(d for d in t.dims if d[0] != dim), t.kind, t.domain) for t in types]
    dims = make_dims([*unify(spec.name, rest), (dim, both)])
    return Type(dims, "float", join_domain(types, dims))


def rename(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """One dimension takes another name."""
    want(spec, types, "float")
    (t,) = types
    old, new = known_dim(spec.name, t, attrs["dim"]), check_dim_name(attrs["to"])
    if old == "page" or new in ("page", "token") or new in t.names:
        raise mistakes.DIM_EXISTS.error(op=spec.name, dim=new, found=str(t))
    return Type(make_dims([(new if n == old else n, e) for n, e in t.dims]), "float", t.domain)


def cast(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A storage dtype."""
    want(spec, types, "float")
    if attrs["dtype"] not in ROUND_DTYPES:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="dtype", found=repr(attrs["dtype"]), want=f"one of {', '.join(ROUND_DTYPES)}"
        )
    return types[0]


def source(dims: str, domain: Domain) -> Infer:
    """A source of fixed dimensions, written `name=extent ...`."""

    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        pairs = [item.split("=") for item in dims.split()]
        return Type(make_dims([(n, Extent.parse(e)) for n, e in pairs]), "float", domain)

    return infer


def const(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A finite number."""
    value = attrs["value"]
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 3.0e38 or value != value:
        raise mistakes.BAD_CONST.error(found=repr(value))
    return Type((), "float", "const")


def extent(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A model dimension's size."""
    if Extent.parse(attrs["extent"]).symbol == "P":
        raise mistakes.BAD_ATTRIBUTE.error(
            op="size", name="extent", found="P", want="a model extent (the number of pages is ops.pages())"
        )
    return Type((), "float", "const")


def iota(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """Counts along one dimension."""
    name, size = check_dim_name(attrs["dim"]), Extent.parse(attrs["extent"])
    if size.symbol == "P":
        raise mistakes.BAD_EXTENT.error(found="'P' (the number of pages)")
    if name == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op="arange", name="dim", found="page", want="a dimension other than page (use ops.position())"
        )
    return Type(((name, size),), "float", "const")


def typed_dims(attrs: Attrs) -> Dims:
    """The `dims` attribute of a load or parameter: `((name, extent text), ...)`."""
    return make_dims([(check_dim_name(n), Extent.parse(e)) for n, e in attrs["dims"]])


def load(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A state of every page, or the one of the request."""
    scope = attrs.get("scope", "page")
    if scope not in SCOPES:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="scope", found=repr(scope), want=" or ".join(map(repr, SCOPES))
        )
    if scope == "request":
        return Type(typed_dims(attrs), "float", "query")
    return Type(make_dims([("page", Extent.parse("P")), *typed_dims(attrs)]), "float", "page")


def param(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """Learned values; they may differ between layers and kv heads."""
    dims = typed_dims(attrs)
    for name, _ in dims:
        if name in ("page", *PARAM_AXES):
            raise mistakes.BAD_PARAM.error(name=attrs["name"], why=f"dimension {name!r} of the value")
    return Type(dims, "float", "query")


def score(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A score becomes a selection."""
    (t,) = types
    want(spec, types, "float")
    if "page" not in t.names or not set(t.names) <= {"page", "head"}:
        extra = [n for n in t.names if n not in ("page", "head")]
        remedy = (
            f"reduce {', '.join(extra)}, e.g. .max({extra[0]!r})"
            if extra
            else "read a page state: cache[...]"
        )
        raise mistakes.BAD_SCORE.error(op=spec.name, found=str(t), remedy=remedy)
    number(spec.name, "fraction", attrs.get("fraction", 1.0), 1e-4, 1.0)
    share = attrs.get("share")
    if share not in (None, "max", "mean"):
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="share", found=repr(share), want='None, "max" or "mean"'
        )
    if share is not None and "head" in t.names:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="share", found=repr(share), want="used with a score without the head dimension"
        )
    if spec.name == "topk":
        number(spec.name, "recall", attrs.get("recall", 1.0), 0.5, 1.0)
    if spec.name == "topp":
        number(spec.name, "p", attrs["p"], 1e-6, 1.0)
    if spec.name == "threshold":
        number(spec.name, "at", attrs["at"], -1e30, 1e30)
    return Type(tuple(d for d in t.dims if d[0] == "head"), "selection", "page")


MOST_CANDIDATES = 64


def refine(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """Two scores become a selection, both one number a page."""
    for t in types:
        want(spec, [t], "float")
        if t.names != ("page",):
            extra = [n for n in t.names if n != "page"]
            remedy = (
                f"reduce {', '.join(extra)}, e.g. .max({extra[0]!r})"
                if extra
                else "read a page state: cache[...]"
            )
            raise mistakes.BAD_SCORE.error(op=spec.name, found=str(t), remedy=remedy)
    number(spec.name, "candidates", attrs["candidates"], 2, MOST_CANDIDATES, whole=True)
    number(spec.name, "fraction", attrs.get("fraction", 1.0), 1e-4, 1.0)
    return Type((), "selection", "page")


def union(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """Two selections of one scope."""
    want(spec, types, "selection")
    a, b = types
    if a.dims != b.dims:
        raise mistakes.BAD_UNION.error(a=str(a), b=str(b))
    return a


def residual(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """A selection with the weight and the value of every page it leaves out."""
    chosen, mass, value = types
    if chosen.kind != "selection" or {mass.kind, value.kind} != {"float"}:
        raise mistakes.BAD_RESIDUAL.error(why=f"{chosen}, {mass} and {value}")
    if set(mass.names) != {"page", "head"}:
        raise mistakes.BAD_RESIDUAL.error(why=f"a mass of dimensions {mass}")
    if value.dims != make_dims([("page", Extent.parse("P")), ("dim", Extent.parse("D"))]):
        raise mistakes.BAD_RESIDUAL.error(why=f"a value of dimensions {value}")
    return chosen


def everything(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    """All pages."""
    return Type((), "selection", "page")
