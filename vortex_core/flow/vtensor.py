"""vTensor: the symbolic, page-centric tensor authors compute with.

It has named dimensions and no positions: `x.max("head")`, never `x.max(1)`. Two tensors broadcast by name. A
vTensor made while tracing records a node; one made in eager mode holds a real tensor as well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Union

from vortex_core.errors import Location
from vortex_core.ir import mistakes
from vortex_core.ir.opset import known_dim
from vortex_core.ir.program import STAGE_METHOD, GraphBuilder
from vortex_core.ir.types import Extent, Type

_HERE = os.path.dirname(os.path.abspath(__file__))
# Frames that are never the author's: this package, and the stand-ins of foreign languages.
_OURS = (_HERE, os.path.join(os.path.dirname(_HERE), "dialects"), "<frozen")
Operand = Union["vTensor", Extent, int, float]


def caller() -> Location | None:
    """The nearest line outside this package: the author's."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_OURS):
            return Location(os.path.basename(file) if os.path.isabs(file) else file, frame.f_lineno)
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


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

    def size(self, dim: str) -> Extent:
        """Extent of a dimension, usable in arithmetic and where an extent is wanted."""
        return self.type.extent(known_dim("size", self.type, dim))

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
        raise mistakes.UNKNOWN_METHOD.error(caller(), name="@", near='x.dot(y, "dim")')

    __rmatmul__ = __matmul__

    def __pow__(self, power: int) -> vTensor:
        if not isinstance(power, int) or isinstance(power, bool) or not 1 <= power <= 8:
            raise mistakes.BAD_ATTRIBUTE.error(
                caller(), op="**", name="power", found=repr(power), want="a whole number from 1 to 8"
            )
        result = self
        for _ in range(power - 1):
            result = result * self
        return result

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

    def clamp(self, low: float | None = None, high: float | None = None) -> vTensor:
        """x limited to [low, high]."""
        result = self
        if low is not None:
            result = emit("maximum", result, low)
        if high is not None:
            result = emit("minimum", result, high)
        return result

    def to(self, dtype: str) -> vTensor:
        """Rounded to a storage dtype: fp32, bf16, fp16, fp8_e4m3, fp8_e5m2."""
        return emit("cast", self, dtype=dtype)

    # ---- reductions ---------------------------------------------------------------------------------------

    def sum(self, *dims: str) -> vTensor:
        """Sum over the named dimensions."""
        return emit("sum", self, dims=_dims(dims))

    def mean(self, *dims: str) -> vTensor:
        """Mean over the named dimensions."""
        return emit("mean", self, dims=_dims(dims))

    def max(self, *dims: str) -> vTensor:
        """Maximum over the named dimensions."""
        return emit("amax", self, dims=_dims(dims))

    def min(self, *dims: str) -> vTensor:
        """Minimum over the named dimensions."""
        return emit("amin", self, dims=_dims(dims))

    def norm(self, *dims: str) -> vTensor:
        """Euclidean norm over named dimensions."""
        return (self * self).sum(*dims).sqrt()

    def var(self, *dims: str) -> vTensor:
        """Biased variance."""
        return ((self - self.mean(*dims)).square()).mean(*dims)

    def dot(self, other: vTensor, *dims: str) -> vTensor:
        """(x * y).sum(dims): a contraction."""
        return (self * other).sum(*dims)

    # ---- along a dimension --------------------------------------------------------------------------------

    def softmax(self, dim: str) -> vTensor:
        """Softmax along `dim` (over `page`: the complete pages of the sequence)."""
        return emit("softmax", self, dim=dim)

    def normalize(self, dim: str) -> vTensor:
        """x / (norm along `dim` + 1e-6)."""
        return self / (self.norm(dim) + 1e-6)

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

    # ---- shape --------------------------------------------------------------------------------------------

    def slice(self, dim: str, start: int | str | Extent, stop: int | str | Extent) -> vTensor:
        """The range [start, stop) of `dim`; ends are numbers or extents such as `"D/2"`."""
        first = start if start == 0 and isinstance(start, int) else _extent_text(start)
        return emit("slice", self, dim=dim, start=first, stop=_extent_text(stop))

    def channels(self, group: str) -> vTensor:
        """The `"rope"` or `"nope"` channels of a tensor with all channels."""
        return emit("channels", self, group=group)

    def split(self, dim: str, /, **into: int) -> vTensor:
        """`x.split("token", row=4)`: 4 consecutive groups, numbered by the new dimension `row`."""
        if len(into) != 1:
            raise mistakes.BAD_ATTRIBUTE.error(
                caller(), op="split", name="into", found=repr(into), want="one new dimension, e.g. row=4"
            )
        ((name, parts),) = into.items()
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
        )

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        known = [n for n in dir(type(self)) if not n.startswith("_")]
        raise mistakes.UNKNOWN_METHOD.error(caller(), name=name, near=mistakes.nearest(name, known))


def _dims(dims: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(dims, key=str))


def number(value: float) -> float:
    """A Python number as a constant, or `VF021`."""
    try:
        return float(value)
    except OverflowError:
        raise mistakes.BAD_CONST.error(caller(), found="a whole number of more than 308 digits") from None


def _extent_text(value: int | str | Extent) -> str:
    return str(Extent.parse(value))


def emit(op: str, *operands: object, builder: GraphBuilder | None = None, **attrs: Any) -> vTensor:
    """Record one operation in the graph its operands belong to; numbers and extents become constants.

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
        raise mistakes.NOT_A_TENSOR.error(at, op=op, found=", ".join(type(o).__name__ for o in operands))
    inputs = []
    for operand in operands:
        if isinstance(operand, vTensor):
            inputs.append(operand._id)
        elif isinstance(operand, Extent):
            if operand.symbol:
                inputs.append(builder.emit("extent", (), at, extent=str(operand)))
            else:
                inputs.append(builder.emit("const", (), at, value=float(operand.factor)))
        elif isinstance(operand, int | float) and not isinstance(operand, bool):
            inputs.append(builder.emit("const", (), at, value=number(operand)))
        else:
            raise mistakes.NOT_A_TENSOR.error(at, op=op, found=type(operand).__name__)
    return vTensor(builder, builder.emit(op, inputs, at, **attrs))
