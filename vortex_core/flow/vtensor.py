"""vTensor: the symbolic, page-centric tensor authors compute with.

It has named dimensions and no positions: `x.max("head")`, never `x.max(1)`. Two tensors broadcast by name. A
vTensor made while tracing records a node; one made in eager mode holds a real tensor as well.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, Union

from vortex_core.errors import Location
from vortex_core.flow import spellings
from vortex_core.flow.caller import caller
from vortex_core.flow.sizes import Size
from vortex_core.ir import mistakes
from vortex_core.ir.graph import STAGE_METHOD, GraphBuilder
from vortex_core.ir.opset import OPS
from vortex_core.ir.rules import known_dim
from vortex_core.ir.types import Extent, Type

Operand = Union["vTensor", Extent, int, float]
Dims = str | Sequence[str]  # one name, or several
current: ContextVar[GraphBuilder | None] = ContextVar("vortex_builder", default=None)


class vTensor:
    """A value of the program being traced. Made by the tracer and by operators, never by authors."""

    __slots__ = ("_builder", "_id", "type")
    __hash__ = None  # type: ignore[assignment]  # equality builds a node
    __array_ufunc__ = None

    def __init__(self, builder: GraphBuilder, node: int) -> None:
        self._builder = builder
        self._id = node
        self.type: Type = builder.nodes[node].type

    # ---- description --------------------------------------------------------------------------------------

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimension names, in canonical order."""
        return self.type.names

    def size(self, dim: str) -> Size:
        """Extent of a dimension, usable in arithmetic and where an extent is wanted."""
        return Size.of(self.type.extent(known_dim("size", self.type, dim)))

    @property
    def value(self) -> Any:
        """The torch tensor, in eager mode (`vortex_core.flow.eager`); while tracing there is none (`VF020`)."""
        found = self._builder.value(self._id)
        if found is None:
            raise mistakes.DATA_DEPENDENT.error(caller(), what="the value")
        return found

    def __repr__(self) -> str:
        found = self._builder.value(self._id)
        return f"vTensor{self.type}" if found is None else f"vTensor{self.type}\n{found}"

    # ---- arithmetic ---------------------------------------------------------------------------------------

    def __add__(self, other: Operand) -> vTensor:
        return emit("add", self, other)

    def __radd__(self, other: Operand) -> vTensor:
        return emit("add", other, self)

    def __sub__(self, other: Operand) -> vTensor:
        return emit("sub", self, other)

    def __rsub__(self, other: Operand) -> vTensor:
        return emit("sub", other, self)

    def __mul__(self, other: Operand) -> vTensor:
        return emit("mul", self, other)

    def __rmul__(self, other: Operand) -> vTensor:
        return emit("mul", other, self)

    def __truediv__(self, other: Operand) -> vTensor:
        return emit("div", self, other)

    def __rtruediv__(self, other: Operand) -> vTensor:
        return emit("div", other, self)

    def __neg__(self) -> vTensor:
        return emit("neg", self)

    def __abs__(self) -> vTensor:
        return emit("abs", self)

    def __matmul__(self, other: object) -> NoReturn:
        raise mistakes.UNKNOWN_METHOD.error(
            caller(), name="@", near='x.dot(y, "dim")', a=self.dims, b=getattr(other, "dims", ())
        )

    __rmatmul__ = __matmul__

    def __pow__(self, power: Operand) -> vTensor:
        return spellings.power(self, power)

    def __rpow__(self, base: Operand) -> vTensor:
        return spellings.exponential(base, self)

    def __floordiv__(self, other: Operand) -> vTensor:
        return emit("floor", emit("div", self, other))

    def __rfloordiv__(self, other: Operand) -> vTensor:
        return emit("floor", emit("div", other, self))

    def __mod__(self, other: Operand) -> vTensor:
        return self - (self // other) * other

    def __round__(self, digits: int = 0) -> vTensor:
        return self.round() if not digits else (self * 10.0**digits).round() / 10.0**digits

    # ---- comparison ---------------------------------------------------------------------------------------

    def __lt__(self, other: Operand) -> vTensor:
        return emit("lt", self, other)

    def __le__(self, other: Operand) -> vTensor:
        return emit("le", self, other)

    def __gt__(self, other: Operand) -> vTensor:
        return emit("lt", other, self)

    def __ge__(self, other: Operand) -> vTensor:
        return emit("le", other, self)

    def __eq__(self, other: object) -> vTensor:  # type: ignore[override]
        return emit("eq", self, other)

    def __ne__(self, other: object) -> vTensor:  # type: ignore[override]
        return emit("not", emit("eq", self, other))

    def __and__(self, other: vTensor) -> vTensor:
        return emit("and", self, other)

    def __or__(self, other: vTensor) -> vTensor:
        return emit("or", self, other)

    def __invert__(self) -> vTensor:
        return emit("not", self)

    # ---- functions ----------------------------------------------------------------------------------------

    def abs(self) -> vTensor:
        """|x|."""
        return emit("abs", self)

    def exp(self) -> vTensor:
        """e^x."""
        return emit("exp", self)

    def log(self) -> vTensor:
        """Natural logarithm."""
        return emit("log", self)

    def sqrt(self) -> vTensor:
        """Square root."""
        return emit("sqrt", self)

    def square(self) -> vTensor:
        """x * x."""
        return emit("mul", self, self)

    def sigmoid(self) -> vTensor:
        """1 / (1 + e^-x)."""
        return emit("sigmoid", self)

    def tanh(self) -> vTensor:
        """Hyperbolic tangent."""
        return emit("tanh", self)

    def relu(self) -> vTensor:
        """max(x, 0)."""
        return emit("maximum", self, 0.0)

    def silu(self) -> vTensor:
        """x * sigmoid(x)."""
        return emit("mul", self, emit("sigmoid", self))

    def sign(self) -> vTensor:
        """-1 where x < 0, else 1."""
        return emit("sign", self)

    def floor(self) -> vTensor:
        """Largest whole number not above x."""
        return emit("floor", self)

    def round(self) -> vTensor:
        """The nearest whole number, halves upwards: floor(x + 0.5)."""
        return (self + 0.5).floor()

    def clamp(self, min: Operand | None = None, max: Operand | None = None) -> vTensor:
        """x limited to [min, max]."""
        result = self
        if min is not None:
            result = emit("maximum", result, min)
        if max is not None:
            result = emit("minimum", result, max)
        return result

    def to(self, dtype: str, *dims: Dims, dim: Dims = ()) -> vTensor:
        """Rounded to a storage dtype, as a page state of it reads back. `x.to("int4", "dim")`: with one scale along
        `dim`."""
        if dtype in spellings.STEPS:
            return spellings.scaled(self, dtype, spellings.reduced(self, "to", dims, dim))
        return self.sign() if dtype == "bits" else emit("cast", self, dtype=dtype)

    # ---- reductions ---------------------------------------------------------------------------------------

    def sum(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Sum over the named dimensions."""
        return emit("sum", self, dims=spellings.reduced(self, "sum", dims, dim, axis, keepdim))

    def mean(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Mean over the named dimensions."""
        return emit("mean", self, dims=spellings.reduced(self, "mean", dims, dim, axis, keepdim))

    def max(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Maximum over the named dimensions."""
        return emit("amax", self, dims=spellings.reduced(self, "max", dims, dim, axis, keepdim))

    def min(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Minimum over the named dimensions."""
        return emit("amin", self, dims=spellings.reduced(self, "min", dims, dim, axis, keepdim))

    def norm(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Euclidean norm over named dimensions."""
        return (self * self).sum(*dims, dim=dim, axis=axis, keepdim=keepdim).sqrt()

    def var(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Biased variance."""
        names = spellings.reduced(self, "var", dims, dim, axis, keepdim)
        return ((self - self.mean(*names)).square()).mean(*names)

    def std(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """Square root of the biased variance."""
        return self.var(*dims, dim=dim, axis=axis, keepdim=keepdim).sqrt()

    def logsumexp(self, *dims: Dims, dim: Dims = (), axis: Dims = (), keepdim: bool = False) -> vTensor:
        """log(sum(exp(x))) over the named dimensions, without overflow: the maximum is taken out."""
        names = spellings.reduced(self, "logsumexp", dims, dim, axis, keepdim)
        peak = self.max(*names)
        return peak + (self - peak).exp().sum(*names).log()

    def dot(self, other: vTensor, *dims: Dims, dim: Dims = (), axis: Dims = ()) -> vTensor:
        """(x * y).sum(dims): a contraction."""
        return (self * other).sum(*dims, dim=dim, axis=axis)

    # ---- along a dimension --------------------------------------------------------------------------------

    def softmax(self, *dims: Dims, dim: Dims = (), axis: Dims = ()) -> vTensor:
        """Softmax along one dimension, or over several together (`page`: the complete pages of the sequence)."""
        names = spellings.reduced(self, "softmax", dims, dim, axis)
        if len(names) == 1:
            return emit("softmax", self, dim=names[0])
        weights = (self - self.max(*names)).exp()
        return weights / weights.sum(*names)

    def normalize(self, *dims: Dims, dim: Dims = (), axis: Dims = ()) -> vTensor:
        """x / (norm along `dim` + 1e-6)."""
        return self / (self.norm(*dims, dim=dim, axis=axis) + 1e-6)

    def argmax(self, *dims: Dims, dim: Dims = (), axis: Dims = ()) -> vTensor:
        """Where along a dimension the largest value stands, counted from 0 (ties: the lower index)."""
        return spellings.argmax(self, spellings.reduced(self, "argmax", dims, dim, axis))

    def take(self, index: Operand, dim: str) -> vTensor:
        """The values at `index` of `dim`, which goes: `x.take(-1, "token")`; `index` may be computed (a gather)."""
        return spellings.take(self, index, dim)

    def cumsum(self, dim: str) -> vTensor:
        """Running sum along `dim`."""
        return emit("cumsum", self, dim=dim)

    def conv(self, weights: Sequence[float], dim: str = "page") -> vTensor:
        """Centred convolution along `dim` with an odd number of weights, zero outside."""
        return emit(
            "conv", self, dim=dim, weights=tuple(weights) if isinstance(weights, list | tuple) else weights
        )

    def maxpool(self, size: int, dim: str = "page") -> vTensor:
        """Centred maximum over an odd number of neighbours along `dim`."""
        return emit("maxpool", self, dim=dim, size=size)

    def largest(self, k: int, dim: str) -> vTensor:
        """Mask of the `k` largest along `dim`."""
        return emit("largest", self, dim=dim, k=k)

    def principal(self, over: str, dim: str = "dim", /, **into: int) -> vTensor:
        """The directions along `dim` in which the rows `over` spread most: `x.principal("row", "dim", rank=8)` is
        `(rank, dim)`, orthonormal, about the largest first. Take the mean away first for principal components."""
        if len(into) != 1:
            raise mistakes.BAD_ATTRIBUTE.error(
                caller(), op="principal", name="into", found=repr(into), want="one new dimension, e.g. rank=8"
            )
        ((name, rank),) = into.items()
        return emit("principal", self, over=over, dim=dim, into=name, rank=rank)

    # ---- shape --------------------------------------------------------------------------------------------

    def slice(self, dim: str, start: int | str | Extent, stop: int | str | Extent) -> vTensor:
        """The range [start, stop) of `dim`; ends are numbers or extents such as `"D/2"`."""
        if spellings.is_last(self, dim, start, stop):
            return self.take(-1, dim) * (arange_of(dim, 1) + 1)
        spellings.check_ends(dim, start, stop)
        first = start if start == 0 and isinstance(start, int) else _extent_text(start)
        return emit("slice", self, dim=dim, start=first, stop=_extent_text(stop))

    def channels(self, group: str) -> vTensor:
        """The `"rope"` or `"nope"` channels of a tensor with all channels."""
        return emit("channels", self, group=group)

    def split(self, dim: str, /, **into: int | str | Extent) -> vTensor:
        """`x.split("token", row=4)`: 4 consecutive groups, numbered by the new dimension `row`. Their number may
        be a fraction of the size: `x.split("dim", pair=page.head_dim // 2)`."""
        if len(into) != 1:
            raise mistakes.BAD_ATTRIBUTE.error(
                caller(), op="split", name="into", found=repr(into), want="one new dimension, e.g. row=4"
            )
        ((name, count),) = into.items()
        parts = str(Extent.parse(count)) if isinstance(count, str | Extent) else count
        if isinstance(parts, str) and parts.isdigit():
            parts = int(parts)
        return emit("split", self, dim=dim, into=name, parts=parts)

    def rename(self, /, **names: str) -> vTensor:
        """`x.rename(dim="other")`: the same values under another dimension name."""
        result = self
        for old, new in names.items():
            result = emit("rename", result, dim=old, to=new)
        return result

    # ---- what tracing cannot give -------------------------------------------------------------------------

    def __bool__(self) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what="the truth value")

    def __float__(self) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what="the number")

    def __int__(self) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what="the number")

    def __len__(self) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what="the length")

    def __iter__(self) -> NoReturn:
        raise mistakes.DATA_DEPENDENT.error(caller(), what="the elements")

    def __getitem__(self, key: object) -> NoReturn:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(),
            op="indexing",
            name="x[...]",
            found=repr(key)[:40],
            want="x.slice(dim, start, stop) or x.channels(group)",
            dims=self.type.dims,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in spellings.METHODS:
            return functools.partial(spellings.METHODS[name], self)
        known = [n for n in dir(type(self)) if not n.startswith("_")]
        raise mistakes.UNKNOWN_METHOD.error(
            caller(), name=name, near=mistakes.nearest(name, known), dims=self.dims
        )


def number(value: float) -> float:
    """A Python number as a constant, or `VF021`."""
    try:
        return float(value)
    except OverflowError:
        raise mistakes.BAD_CONST.error(caller(), found="a whole number of more than 308 digits") from None


def arange_of(dim: str, extent: int | str | Extent) -> vTensor:
    """0, 1, 2, ... along one named dimension."""
    return emit("iota", builder=current.get(), dim=dim, extent=_extent_text(extent))


def _extent_text(value: int | str | Extent) -> str:
    return str(Extent.parse(value))


_WANTS_FLOATS = frozenset({"unary", "binary", "compare", "reduce", "scan", "decompose", "shape", "select"})


def emit(op: str, *operands: object, builder: GraphBuilder | None = None, **attrs: Any) -> vTensor:
    """Record one operation in the graph its operands belong to, or of the method being traced.

    Numbers and extents become constants; a mask where floats are wanted becomes 1 and 0.

    Raises:
        VortexError: the operator's own errors, `VF019` for a foreign operand, `VF022` for a tensor of another
            method.
    """
    at = caller()
    for operand in operands:
        if isinstance(operand, vTensor):
            if builder is not None and operand._builder is not builder:
                raise mistakes.CROSS_STAGE.error(at, op=op, other=STAGE_METHOD[operand._builder.stage])
            builder = operand._builder
    if builder is None:
        builder = current.get()
    if builder is None:
        raise mistakes.NOT_A_TENSOR.error(at, op=op, found=", ".join(type(o).__name__ for o in operands))
    inputs = [_node(op, operand, builder, at) for operand in operands]
    if OPS[op].group in _WANTS_FLOATS and op != "union":
        inputs = [_number_of_mask(i, builder, at) for i in inputs]
    elif op == "where":
        inputs[1:] = [_number_of_mask(i, builder, at) for i in inputs[1:]]
    return vTensor(builder, builder.emit(op, inputs, at, **attrs))


def _node(op: str, operand: object, builder: GraphBuilder, at: Location | None) -> int:
    if isinstance(operand, vTensor):
        return operand._id
    if isinstance(operand, Extent):
        if operand.symbol:
            return builder.emit("extent", (), at, extent=str(operand))
        return builder.emit("const", (), at, value=float(operand.factor))
    if isinstance(operand, int | float) and not isinstance(operand, bool):
        return builder.emit("const", (), at, value=number(operand))
    raise mistakes.NOT_A_TENSOR.error(at, op=op, found=type(operand).__name__)


def _number_of_mask(i: int, builder: GraphBuilder, at: Location | None) -> int:
    if builder.nodes[i].type.kind != "bool":
        return i
    one, zero = (builder.emit("const", (), at, value=v) for v in (1.0, 0.0))
    return builder.emit("where", (i, one, zero), at)


def value(x: Operand) -> vTensor:
    """A number or a size as a value of the method being traced.

    Raises:
        VortexError: `VF014` outside one: a declaration has sizes only.
    """
    if isinstance(x, vTensor):
        return x
    builder = current.get()
    if builder is None:
        raise mistakes.BAD_EXTENT.error(caller(), found=f"arithmetic on {x} that is no fraction of it")
    at = caller()
    return vTensor(builder, _node("a value", x, builder, at))


Size.value_of = staticmethod(value)
