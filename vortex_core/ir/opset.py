"""The operators of the IR, each defined once.

An `OpSpec` holds everything there is to know about an operator: where it is legal, how it types, what it computes.
The eager method, the IR node, the verifier rule, the oracle, the cost and the documentation page all read it here.

`math(t, args, axes, attrs)` is the definition: `t` is the torch module, `args` are tensors already aligned to a
common rank (missing dimensions have size 1), `axes` maps the input's dimension names to negative axes. Any number
of leading batch axes is allowed, so the same definition serves the per-sequence oracle and the batched backend.
Operators that look across pages must see real pages only; a batched backend masks padding itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vortex_core.ir import mistakes
from vortex_core.ir.types import (
    Dims,
    Extent,
    Kind,
    Stage,
    Type,
    check_dim_name,
    join_domain,
    make_dims,
    unify,
)

Attrs = Mapping[str, Any]
Axes = Mapping[str, int]
Math = Callable[[Any, Sequence[Any], Axes, Attrs], Any]
Infer = Callable[["OpSpec", Sequence[Type], Attrs], Type]
Group = Literal["source", "unary", "binary", "compare", "logic", "reduce", "scan", "shape", "select"]
BOTH: frozenset[Stage] = frozenset({"cache", "index"})
CACHE: frozenset[Stage] = frozenset({"cache"})
INDEX: frozenset[Stage] = frozenset({"index"})


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    Attributes:
        name: as in the IR.
        group: its family.
        arity: number of inputs.
        attrs: attribute names.
        stages: where it is legal.
        infer: types the result, or raises a catalogued `VortexError`.
        math: the definition, None for sources and selections (backends supply those).
        formula: the definition for people.
        doc: one sentence.
        commutes: whether inputs may be swapped.
        flops: floating-point operations per element of the larger of input and output.
    """

    name: str
    group: Group
    arity: int
    attrs: tuple[str, ...]
    stages: frozenset[Stage]
    infer: Infer
    math: Math | None
    formula: str
    doc: str
    commutes: bool = False
    flops: float = 1.0


OPS: dict[str, OpSpec] = {}


def _op(
    name: str,
    group: Group,
    arity: int,
    infer: Infer,
    math: Math | None,
    formula: str,
    doc: str,
    *,
    attrs: tuple[str, ...] = (),
    stages: frozenset[Stage] = BOTH,
    commutes: bool = False,
    flops: float = 1.0,
) -> None:
    assert name not in OPS, name
    OPS[name] = OpSpec(name, group, arity, attrs, stages, infer, math, formula, doc, commutes, flops)


# ---- typing rules -----------------------------------------------------------------------------------------------


def _want(spec: OpSpec, types: Sequence[Type], kind: Kind) -> None:
    for t in types:
        if t.kind != kind:
            remedy = "compare first, e.g. x > 0" if kind == "bool" else "use ops.where(mask, a, b)"
            raise mistakes.NOT_BOOL.error(op=spec.name, want=kind, found=str(t), remedy=remedy)


def _pointwise(kind_in: Kind, kind_out: Kind) -> Infer:
    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        _want(spec, types, kind_in)
        dims = unify(spec.name, types)
        return Type(dims, kind_out, join_domain(types, dims))

    return infer


def _where(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types[:1], "bool")
    _want(spec, types[1:], "float")
    dims = unify(spec.name, types)
    return Type(dims, "float", join_domain(types, dims))


def known_dim(op: str, t: Type, dim: object) -> str:
    """`dim` as a dimension of `t`, or `VF010`."""
    if not isinstance(dim, str) or dim not in t.names:
        raise mistakes.UNKNOWN_DIM.error(
            op=op, dim=dim, found=str(t), known=", ".join(t.names) or "none: it is a scalar"
        )
    return dim


def _reduce(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
    (t,) = types
    gone = {known_dim(spec.name, t, d) for d in attrs["dims"]}
    if not gone or len(gone) != len(attrs["dims"]):
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="dims", found=attrs["dims"], want="one or more different dimension names"
        )
    dims: Dims = tuple(d for d in t.dims if d[0] not in gone)
    return Type(dims, "float", join_domain(types, dims))


def _along(check: Callable[[OpSpec, Type, Attrs], None] | None = None, kind: Kind = "float") -> Infer:
    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        _want(spec, types, "float")
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


def _check_conv(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    weights = attrs["weights"]
    if not isinstance(weights, tuple) or len(weights) % 2 == 0 or len(weights) > 31:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="weights", found=repr(weights), want="an odd number of weights, at most 31"
        )
    for w in weights:
        number(spec.name, "weights", w, -1e6, 1e6)


def _check_pool(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    if number(spec.name, "size", attrs["size"], 1, 31, whole=True) % 2 == 0:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="size", found=attrs["size"], want="an odd whole number from 1 to 31"
        )


def _check_largest(spec: OpSpec, t: Type, attrs: Attrs) -> None:
    number(spec.name, "k", attrs["k"], 1, 4096, whole=True)
    if attrs["dim"] == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name,
            name="dim",
            found="page",
            want="a dimension other than page (pages are chosen with ops.topk)",
        )


def _slice(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
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
    first = Extent("", _fraction(0)) if start == 0 else Extent.parse(start)
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


def _fraction(value: int) -> Any:
    from fractions import Fraction

    return Fraction(value)


def _difference(first: Extent, last: Extent) -> Extent | None:
    if first.factor == 0:
        return last
    if first.symbol != last.symbol or last.factor <= first.factor:
        return None
    return Extent(last.symbol, last.factor - first.factor)


def _exceeds(a: Extent, b: Extent) -> bool:
    """Whether `a` certainly exceeds `b`; extents of different symbols are checked when the geometry is known."""
    return a.symbol == b.symbol and a.factor > b.factor


def _channels(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
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


def _split(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
    (t,) = types
    dim = known_dim(spec.name, t, attrs["dim"])
    into = check_dim_name(attrs["into"])
    if dim == "page" or into in t.names or into in ("page", "token", "head"):
        raise mistakes.DIM_EXISTS.error(op=spec.name, dim=into, found=str(t))
    parts = int(number(spec.name, "parts", attrs["parts"], 1, 1024, whole=True))
    inner = t.extent(dim) // parts
    if not inner.symbol and inner.factor.denominator != 1:
        raise mistakes.NOT_DIVISIBLE.error(
            extent=str(t.extent(dim)), value=str(inner.factor), sizes=f"{parts} parts"
        )
    dims = [(n, inner if n == dim else e) for n, e in t.dims] + [(into, Extent.parse(parts))]
    return Type(make_dims(dims), "float", t.domain)


def _rename(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
    (t,) = types
    old, new = known_dim(spec.name, t, attrs["dim"]), check_dim_name(attrs["to"])
    if old == "page" or new in ("page", "token") or new in t.names:
        raise mistakes.DIM_EXISTS.error(op=spec.name, dim=new, found=str(t))
    return Type(make_dims([(new if n == old else n, e) for n, e in t.dims]), "float", t.domain)


def _cast(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "float")
    if attrs["dtype"] not in ROUND_DTYPES:
        raise mistakes.BAD_ATTRIBUTE.error(
            op=spec.name, name="dtype", found=repr(attrs["dtype"]), want=f"one of {', '.join(ROUND_DTYPES)}"
        )
    return types[0]


ROUND_DTYPES = ("fp32", "bf16", "fp16", "fp8_e4m3", "fp8_e5m2")


def _source(dims: str, domain: Any) -> Infer:
    def infer(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
        pairs = [item.split("=") for item in dims.split()]
        return Type(make_dims([(n, Extent.parse(e)) for n, e in pairs]), "float", domain)

    return infer


def _const(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    value = attrs["value"]
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 3.0e38 or value != value:
        raise mistakes.BAD_CONST.error(found=repr(value))
    return Type((), "float", "const")


def _extent(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    if Extent.parse(attrs["extent"]).symbol == "P":
        raise mistakes.BAD_ATTRIBUTE.error(
            op="size", name="extent", found="P", want="a model extent (the number of pages is ops.pages())"
        )
    return Type((), "float", "const")


def _iota(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    name = check_dim_name(attrs["dim"])
    if name == "page":
        raise mistakes.BAD_ATTRIBUTE.error(
            op="arange", name="dim", found="page", want="a dimension other than page (use ops.position())"
        )
    return Type(((name, Extent.parse(attrs["extent"])),), "float", "const")


def typed_dims(attrs: Attrs) -> Dims:
    """The `dims` attribute of a load or parameter: `((name, extent text), ...)`."""
    return make_dims([(check_dim_name(n), Extent.parse(e)) for n, e in attrs["dims"]])


def _load(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    return Type(make_dims([("page", Extent.parse("P")), *typed_dims(attrs)]), "float", "page")


def _param(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    return Type(typed_dims(attrs), "float", "const")


def _score(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    (t,) = types
    _want(spec, types, "float")
    if "page" not in t.names or not set(t.names) <= {"page", "head"}:
        extra = [n for n in t.names if n not in ("page", "head")]
        remedy = (
            f"reduce {', '.join(extra)}, e.g. .max({extra[0]!r})"
            if extra
            else "read a page state: cache[...]"
        )
        raise mistakes.BAD_SCORE.error(op=spec.name, found=str(t), remedy=remedy)
    number(spec.name, "fraction", attrs.get("fraction", 1.0), 1e-6, 1.0)
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


def _union(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    _want(spec, types, "selection")
    a, b = types
    if a.dims != b.dims:
        raise mistakes.BAD_UNION.error(a=str(a), b=str(b))
    return a


def _everything(spec: OpSpec, types: Sequence[Type], attrs: Attrs) -> Type:
    return Type((), "selection", "page")


# ---- definitions ------------------------------------------------------------------------------------------------


def _axes_of(axes: Axes, dims: Sequence[str]) -> tuple[int, ...]:
    return tuple(axes[d] for d in dims)


def _conv_math(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    x = args[0].movedim(axes[attrs["dim"]], -1)
    weights = attrs["weights"]
    half = len(weights) // 2
    padded = t.nn.functional.pad(x, (half, half))
    n = x.shape[-1]
    total = sum(w * padded[..., i : i + n] for i, w in enumerate(weights))
    return total.movedim(-1, axes[attrs["dim"]])


def _pool_math(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    x = args[0].movedim(axes[attrs["dim"]], -1)
    half = attrs["size"] // 2
    padded = t.nn.functional.pad(x, (half, half), value=float("-inf"))
    n = x.shape[-1]
    best = padded[..., :n]
    for i in range(1, attrs["size"]):
        best = t.maximum(best, padded[..., i : i + n])
    return best.movedim(-1, axes[attrs["dim"]])


def _largest_math(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    x = args[0].movedim(axes[attrs["dim"]], -1)
    order = t.sort(x, dim=-1, descending=True, stable=True).indices
    mask = t.zeros_like(x, dtype=t.bool).scatter(-1, order[..., : attrs["k"]], True)
    return mask.movedim(-1, axes[attrs["dim"]])


def torch_dtype(t: Any, name: str) -> Any:
    """Torch dtype of a storage dtype name."""
    return {
        "fp32": t.float32,
        "bf16": t.bfloat16,
        "fp16": t.float16,
        "fp8_e4m3": t.float8_e4m3fn,
        "fp8_e5m2": t.float8_e5m2,
    }[name]


def _cast_math(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    return round_to(t, args[0], attrs["dtype"])


def round_to(t: Any, x: Any, dtype: str) -> Any:
    """`x` rounded to a storage dtype and back; values beyond its range saturate."""
    kind = torch_dtype(t, dtype)
    if dtype == "fp32":
        return x.to(kind).to(x.dtype)
    top = t.finfo(kind).max
    return x.clamp(-top, top).to(kind).to(x.dtype)


_f, _b = _pointwise("float", "float"), _pointwise("float", "bool")
_l = _pointwise("bool", "bool")

for _name, _dims, _domain, _stages, _formula, _doc in (
    ("q", "head=G dim=D", "query", INDEX, "q[head, dim]", "The query of this step, after rotation (MLA: absorbed)."),
    ("k", "token=S dim=D", "state", CACHE, "k[token, dim]", "Keys of the completed page, after rotation (MLA: the latent)."),
    ("v", "token=S dim=D", "state", CACHE, "v[token, dim]", "Values of the completed page (MLA: the latent with its rotary channels zero)."),
    ("position", "page=P", "page", INDEX, "position[page] = 0, 1, 2, ...", "Logical page number, from the start of the sequence."),
    ("pages", "", "query", INDEX, "P", "Number of complete pages of the sequence."),
    ("length", "", "query", INDEX, "L", "Tokens in the sequence, the current one included."),
    ("mass", "page=P head=G", "page", INDEX, "mass[page, head]", "Attention probability each page received in the previous step (0 if not attended)."),
):  # fmt: skip
    _op(_name, "source", 0, _source(_dims, _domain), None, _formula, _doc, stages=_stages, flops=0)
_op("const", "source", 0, _const, None, "c", "A number.", attrs=("value",), flops=0)
_op(
    "extent",
    "source",
    0,
    _extent,
    None,
    "|dim|",
    "The size of a model dimension, as a number.",
    attrs=("extent",),
    flops=0,
)
_op(
    "iota",
    "source",
    0,
    _iota,
    None,
    "0, 1, 2, ...",
    "Counts along a new dimension.",
    attrs=("dim", "extent"),
    flops=0,
)
_op(
    "load",
    "source",
    0,
    _load,
    None,
    "state[page, ...]",
    "A page state, for every complete page of the sequence.",
    attrs=("name", "dims"),
    stages=INDEX,
    flops=0,
)
_op(
    "param",
    "source",
    0,
    _param,
    None,
    "W[...]",
    "A learned constant, supplied with the flow.",
    attrs=("name", "dims"),
    flops=0,
)

for _name, _fn, _formula, _doc, _flops in (
    ("neg", lambda t, x: -x, "-x", "Negation.", 1),
    ("exp", lambda t, x: t.exp(x), "e^x", "Exponential.", 4),
    ("log", lambda t, x: t.log(x), "ln x", "Natural logarithm; of a negative number, NaN, which ranks last.", 4),
    ("sqrt", lambda t, x: t.sqrt(x), "x^(1/2)", "Square root.", 2),
    ("abs", lambda t, x: t.abs(x), "|x|", "Absolute value.", 1),
    ("sigmoid", lambda t, x: t.sigmoid(x), "1 / (1 + e^-x)", "Logistic function.", 6),
    ("tanh", lambda t, x: t.tanh(x), "tanh x", "Hyperbolic tangent.", 6),
    ("sign", lambda t, x: t.where(x < 0, -t.ones_like(x), t.ones_like(x)), "-1 if x < 0 else 1", "Sign bit: zero counts as positive.", 1),
    ("floor", lambda t, x: t.floor(x), "floor x", "Largest whole number not above x.", 1),
):  # fmt: skip
    _op(
        _name,
        "unary",
        1,
        _f,
        (lambda fn: lambda t, args, axes, attrs: fn(t, args[0]))(_fn),
        _formula,
        _doc,
        flops=_flops,
    )
for _name, _fn2, _formula, _doc, _commutes in (
    ("add", lambda t, x, y: x + y, "x + y", "Sum.", True),
    ("sub", lambda t, x, y: x - y, "x - y", "Difference.", False),
    ("mul", lambda t, x, y: x * y, "x y", "Product.", True),
    ("div", lambda t, x, y: x / y, "x / y", "Quotient.", False),
    ("maximum", lambda t, x, y: t.maximum(x, y), "max(x, y)", "The larger.", True),
    ("minimum", lambda t, x, y: t.minimum(x, y), "min(x, y)", "The smaller.", True),
):
    _op(
        _name,
        "binary",
        2,
        _f,
        (lambda fn: lambda t, args, axes, attrs: fn(t, args[0], args[1]))(_fn2),
        _formula,
        _doc,
        commutes=_commutes,
    )
_op("lt", "compare", 2, _b, lambda t, a, axes, attrs: a[0] < a[1], "x < y", "Strictly less.")
_op("le", "compare", 2, _b, lambda t, a, axes, attrs: a[0] <= a[1], "x <= y", "Less or equal.")
_op("eq", "compare", 2, _b, lambda t, a, axes, attrs: a[0] == a[1], "x = y", "Equal.", commutes=True)
_op("not", "logic", 1, _l, lambda t, a, axes, attrs: ~a[0], "not m", "Negated mask.")
_op("and", "logic", 2, _l, lambda t, a, axes, attrs: a[0] & a[1], "m and n", "Both.", commutes=True)
_op("or", "logic", 2, _l, lambda t, a, axes, attrs: a[0] | a[1], "m or n", "Either.", commutes=True)
_op(
    "where",
    "logic",
    3,
    _where,
    lambda t, a, axes, attrs: t.where(a[0], a[1], a[2]),
    "x where m else y",
    "Choice by mask.",
)

_op(
    "sum",
    "reduce",
    1,
    _reduce,
    lambda t, a, axes, attrs: a[0].sum(_axes_of(axes, attrs["dims"])),
    "sum over dims",
    "Sum over dimensions.",
    attrs=("dims",),
)
_op(
    "mean",
    "reduce",
    1,
    _reduce,
    lambda t, a, axes, attrs: a[0].mean(_axes_of(axes, attrs["dims"])),
    "sum over dims / count",
    "Mean over dimensions.",
    attrs=("dims",),
)
_op(
    "amax",
    "reduce",
    1,
    _reduce,
    lambda t, a, axes, attrs: t.amax(a[0], _axes_of(axes, attrs["dims"])),
    "max over dims",
    "Maximum over dimensions.",
    attrs=("dims",),
)
_op(
    "amin",
    "reduce",
    1,
    _reduce,
    lambda t, a, axes, attrs: t.amin(a[0], _axes_of(axes, attrs["dims"])),
    "min over dims",
    "Minimum over dimensions.",
    attrs=("dims",),
)
_op(
    "softmax",
    "scan",
    1,
    _along(),
    lambda t, a, axes, attrs: t.softmax(a[0], axes[attrs["dim"]]),
    "e^x / sum e^x",
    "Softmax along a dimension.",
    attrs=("dim",),
    flops=8,
)
_op(
    "cumsum",
    "scan",
    1,
    _along(),
    lambda t, a, axes, attrs: t.cumsum(a[0], axes[attrs["dim"]]),
    "running sum",
    "Running sum along a dimension, itself included.",
    attrs=("dim",),
)
_op(
    "conv",
    "scan",
    1,
    _along(_check_conv),
    _conv_math,
    "y[i] = sum_j w[j] x[i + j - half]",
    "Centred convolution along a dimension, zero outside.",
    attrs=("dim", "weights"),
    flops=6,
)
_op(
    "maxpool",
    "scan",
    1,
    _along(_check_pool),
    _pool_math,
    "y[i] = max |j - i| <= half of x[j]",
    "Centred maximum along a dimension.",
    attrs=("dim", "size"),
    flops=3,
)
_op(
    "largest",
    "scan",
    1,
    _along(_check_largest, "bool"),
    _largest_math,
    "mask of the k largest",
    "Mask of the k largest along a dimension (ties: the lower index).",
    attrs=("dim", "k"),
    flops=10,
)


def _narrow(t: Any, args: Sequence[Any], axes: Axes, attrs: Attrs) -> Any:
    return args[0].narrow(axes[attrs["dim"]], attrs["start_"], attrs["stop_"] - attrs["start_"])


_op(
    "slice",
    "shape",
    1,
    _slice,
    _narrow,
    "x[start:stop]",
    "A range of a dimension.",
    attrs=("dim", "start", "stop"),
    flops=0,
)
_op(
    "channels",
    "shape",
    1,
    _channels,
    _narrow,
    "x[group]",
    "The rotary or the unrotated channels.",
    attrs=("group",),
    flops=0,
)
_op(
    "split",
    "shape",
    1,
    _split,
    None,
    "x[i * inner + j] -> x[i, j]",
    "Consecutive groups of a dimension, numbered by a new one.",
    attrs=("dim", "into", "parts"),
    flops=0,
)
_op(
    "rename",
    "shape",
    1,
    _rename,
    None,
    "x[old] -> x[new]",
    "Another dimension name (for outer products).",
    attrs=("dim", "to"),
    flops=0,
)
_op(
    "cast",
    "unary",
    1,
    _cast,
    _cast_math,
    "round(x)",
    "Rounds to a storage dtype; saturates beyond its range.",
    attrs=("dtype",),
)

_op(
    "topk",
    "select",
    1,
    _score,
    None,
    "the k pages with the highest score",
    'The best pages within the budget. recall=0.95 allows an approximate kernel; share="max" or "mean" '
    "over kv heads gives them one selection; fraction=0.5 of the budget, for unions.",
    attrs=("fraction", "share", "recall"),
    stages=INDEX,
    flops=10,
)
_op(
    "topp",
    "select",
    1,
    _score,
    None,
    "the fewest pages whose softmax mass reaches p",
    "Adaptive count: best pages until their softmax mass reaches p, at most the budget.",
    attrs=("p", "fraction", "share"),
    stages=INDEX,
    flops=20,
)
_op(
    "threshold",
    "select",
    1,
    _score,
    None,
    "pages with score >= at",
    "Pages at or above a score, at most the budget, best first.",
    attrs=("at", "fraction", "share"),
    stages=INDEX,
    flops=10,
)
_op("union", "select", 2, _union, None, "A or B", "Pages in either selection.", stages=INDEX, commutes=True)
_op("everything", "select", 0, _everything, None, "all pages", "Dense attention.", stages=INDEX, flops=0)
