"""Operators that are functions rather than methods: `from vortex_core import ops`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

from vortex_core.errors import VortexError
from vortex_core.flow import spellings
from vortex_core.flow.caller import caller
from vortex_core.flow.vtensor import Operand, current, emit, number, value, vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.graph import GraphBuilder
from vortex_core.ir.params import ParamDecl, Values
from vortex_core.ir.types import Extent


class ParamTable:
    """The values a flow comes with, and how its methods declared their axes."""

    def __init__(self, values: Mapping[str, Values]) -> None:
        self.values = values
        self.declared: dict[str, ParamDecl] = {}

    def declare(self, name: object, axes: tuple[tuple[str, Extent], ...]) -> ParamDecl:
        """The parameter under these axes.

        Raises:
            VortexError: `VF065` if there are no such values or the axes are not theirs.
        """
        if not isinstance(name, str) or name not in self.values:
            known = ", ".join(sorted(self.values)) or "none"
            raise mistakes.BAD_PARAM.error(name=name, why=f"no values under this name; there are {known}")
        decl = ParamDecl(name, axes, self.values[name])
        decl.check()
        if self.declared.setdefault(name, decl) != decl:
            raise mistakes.BAD_PARAM.error(name=name, why="declared with other axes elsewhere")
        return decl


supplied: ContextVar[ParamTable | None] = ContextVar("vortex_params", default=None)


class Selection:
    """A set of pages: what `forward_indexer` returns. `a | b` is their union."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: vTensor) -> None:
        self.tensor = tensor

    def __or__(self, other: Selection) -> Selection:
        return union(self, other)

    def residual(self, mass: vTensor, value: vTensor) -> Selection:
        """The selection, and each other complete page as one entry of attention.

        Args:
            mass: `(page, head)`, an estimate of log sum_t exp(q_h . k_t / sqrt(D)) over the page's tokens.
            value: `(page, dim)`, the value that stands for the page's: a state, as read from `cache`.
        """
        for given in (mass, value):
            if not isinstance(given, vTensor):
                raise mistakes.NOT_A_TENSOR.error(caller(), op="residual", found=type(given).__name__)
        return Selection(emit("residual", self.tensor, mass, value))


def _builder() -> GraphBuilder:
    builder = current.get()
    if builder is None:
        raise mistakes.WRONG_STAGE.error(
            caller(), op="this operator", stage="plain Python", legal="a method of a flow being traced"
        )
    return builder


# ---- elementwise ------------------------------------------------------------------------------------------


def maximum(a: Operand, b: Operand) -> vTensor:
    """The larger of two, elementwise."""
    return emit("maximum", a, b)


def minimum(a: Operand, b: Operand) -> vTensor:
    """The smaller of two, elementwise."""
    return emit("minimum", a, b)


def where(mask: vTensor, a: Operand, b: Operand) -> vTensor:
    """`a` where `mask`, else `b`."""
    return emit("where", mask, a, b)


# The methods as functions: `ops.sqrt(x)` is `x.sqrt()`.
_METHODS = (
    "abs", "clamp", "cumsum", "dot", "exp", "floor", "log", "logsumexp", "mean", "norm", "relu", "round", "sigmoid",
    "sign", "silu", "softmax", "sqrt", "square", "std", "sum", "tanh", "var",
)  # fmt: skip


def _of_method(name: str, x: Operand, *args: Any, **keywords: Any) -> Any:
    return getattr(value(x), name)(*args, **keywords)


def max(x: Operand, *dims: Any, **keywords: Any) -> vTensor:
    """The maximum over named dimensions, or of two operands."""
    return _extreme("max", "maximum", x, dims, keywords)


def min(x: Operand, *dims: Any, **keywords: Any) -> vTensor:
    """The minimum over named dimensions, or of two operands."""
    return _extreme("min", "minimum", x, dims, keywords)


def _extreme(name: str, op: str, x: Operand, dims: tuple[Any, ...], keywords: dict[str, Any]) -> vTensor:
    if len(dims) == 1 and isinstance(dims[0], vTensor | Extent | int | float) and not keywords:
        return emit(op, x, dims[0])
    found: vTensor = _of_method(name, x, *dims, **keywords)
    return found


def concat(*tensors: Any, dim: str = "dim") -> vTensor:
    """One after the other along `dim`: `ops.concat([x, y], "dim")`."""
    if tensors and isinstance(tensors[-1], str):
        *tensors, dim = tensors  # type: ignore[assignment]  # the dimension may come last without its name
    flat = [t for given in tensors for t in (given if isinstance(given, list | tuple) else [given])]
    if not flat or not all(isinstance(t, vTensor) for t in flat):
        found = ", ".join(type(t).__name__ for t in flat) or "nothing"
        raise mistakes.NOT_A_TENSOR.error(caller(), op="concat", found=found)
    result: vTensor = flat[0]
    for following in flat[1:]:
        result = emit("concat", result, following, dim=dim)
    return result


# ---- sources ----------------------------------------------------------------------------------------------


def position() -> vTensor:
    """`(page)`: 0, 1, 2, ... from the start of the sequence. forward_indexer only."""
    return emit("position", builder=_builder())


def pages() -> vTensor:
    """Number of complete pages, a scalar. forward_indexer only."""
    return emit("pages", builder=_builder())


def length() -> vTensor:
    """Tokens in the sequence, a scalar. forward_indexer only."""
    return emit("length", builder=_builder())


def mass() -> vTensor:
    """`(page, head)`: attention probability each page received in the previous step. forward_indexer only."""
    return emit("mass", builder=_builder())


def dense_mass() -> vTensor:
    """`(page, head)`: attention probability each page receives in this step in the nearest layer before of
    `dense_layers`. forward_indexer only."""
    return emit("dense_mass", builder=_builder())


def rotary() -> vTensor:
    """`(dim)`: radians that each channel's rotary pair turns a token, 0 for channels that are not rotated."""
    return emit("rotary", builder=_builder())


def param(name: str, /, **axes: int | str | Extent) -> vTensor:
    """Learned values supplied with the flow: `ops.param("w", layer=28, kv_head=8, rank=16, dim="D")`.

    Args:
        name: a key of the class attribute `params`, or of the .npz or .safetensors file beside the flow.
        axes: every axis of the values in their order. `layer` and `kv_head` pick the slice of the layer and kv
            head at work; the others are the dimensions of the result.
    """
    builder = _builder()
    table = supplied.get()
    assert table is not None, "a builder without a table"
    pairs = tuple((n, Extent.parse(e)) for n, e in axes.items())
    try:
        decl = table.declare(name, pairs)
    except VortexError as error:
        error.location = error.location or caller()
        raise
    dims = tuple((n, str(e)) for n, e in decl.dims)
    return emit("param", builder=builder, name=name, dims=dims)


def arange(**dim: int | str | Extent) -> vTensor:
    """`ops.arange(dim="D")`: 0, 1, 2, ... along one named dimension."""
    if len(dim) != 1:
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(), op="arange", name="dim", found=repr(dim), want='one dimension, e.g. dim="D"'
        )
    ((name, extent),) = dim.items()
    return emit("iota", builder=_builder(), dim=name, extent=str(Extent.parse(extent)))


def signs(*, seed: int = 0, **dims: int | str | Extent) -> vTensor:
    """`ops.signs(bit=64, dim="D")`: fixed random signs over two new dimensions, the same in every model and layer.

    A random projection that needs no learned values: sketches, locality sensitive hashes. Another `seed` gives others.
    The first dimension has at most 1,000 rows.
    """
    if len(dims) != 2 or not isinstance(seed, int):
        found = ", ".join(f"{n}={e}" for n, e in dims.items())
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(), op="signs", name="dims", found=f"({found})", want='two dimensions, e.g. bit=64, dim="D"'
        )
    (one, many), (other, more) = dims.items()
    return spellings.signs(arange(**{one: many}), arange(**{other: more}), seed)


def hadamard(**dims: int | str | Extent) -> vTensor:
    """`ops.hadamard(code=32, dim=32)`: signs of a Hadamard matrix, its sizes a power of 2.

    Divided by the square root of its size it is a rotation that spreads a few large channels over all of them. Of more
    channels, turn groups: `x.split("dim", block=page.head_dim // 32)` has 32 channels a block.
    """
    shown = ", ".join(f"{n}={e}" for n, e in dims.items())
    extents = {str(Extent.parse(e)) for e in dims.values()}
    only = extents.pop() if len(extents) == 1 else ""
    number = int(only) if only.isdigit() else 0
    if len(dims) != 2 or number & (number - 1) or not 2 <= number <= 256:
        want = "two dimensions of one size, 2, 4, 8, ... or 256, e.g. code=32, dim=32"
        raise mistakes.BAD_ATTRIBUTE.error(
            caller(), op="hadamard", name="dims", found=f"({shown})", want=want
        )
    first, second = (arange(**{name: extent}) for name, extent in dims.items())
    return spellings.hadamard(first, second, number)


def size(extent: str | Extent) -> vTensor:
    """A model extent as a number: `ops.size("D")` channels, `"S"` tokens per page, `"G"` query heads."""
    return emit("extent", builder=_builder(), extent=str(Extent.parse(extent)))


def constant(x: float) -> vTensor:
    """A number as a vTensor."""
    return emit("const", builder=_builder(), value=number(x))


# ---- selection --------------------------------------------------------------------------------------------


def _select(op: str, score: object, **attrs: Any) -> Selection:
    if not isinstance(score, vTensor):
        raise mistakes.NOT_A_TENSOR.error(caller(), op=op, found=type(score).__name__)
    return Selection(emit(op, score, **attrs))


def topk(
    score: vTensor, *, fraction: float = 1.0, share: str | None = None, recall: float = 1.0
) -> Selection:
    """The pages with the highest score, within the budget (knobs) and beside the pages always kept.

    Args:
        score: `(page)`, or `(page, head)` for one selection per query head.
        fraction: share of the budget this stream may use (for unions).
        share: `"max"` or `"mean"` of the scores over kv heads gives all of them one selection.
        recall: below 1, an approximate kernel may miss this share of the exact set.
    """
    return _select("topk", score, fraction=fraction, share=share, recall=recall)


def topp(score: vTensor, p: float, *, fraction: float = 1.0, share: str | None = None) -> Selection:
    """The fewest best pages whose softmax mass reaches `p`, at most the budget (Twilight, arXiv
    2502.02770)."""
    return _select("topp", score, p=p, fraction=fraction, share=share)


def threshold(score: vTensor, at: float, *, fraction: float = 1.0, share: str | None = None) -> Selection:
    """Pages with score >= `at`, best first, at most the budget."""
    return _select("threshold", score, at=at, fraction=fraction, share=share)


def refine(coarse: vTensor, fine: vTensor, *, candidates: int, fraction: float = 1.0) -> Selection:
    """Selection in two stages: the best pages by `coarse` are candidates, and of these the best by `fine` are selected.

    Args:
        coarse: `(page)`, computed for every page.
        fine: `(page)`, computed for candidates alone, from states that no step changes and from no other page.
        candidates: so many times as many pages as are selected, 2 to 64.
        fraction: share of the budget this stream may use (for unions).
    """
    for score in (coarse, fine):
        if not isinstance(score, vTensor):
            raise mistakes.NOT_A_TENSOR.error(caller(), op="refine", found=type(score).__name__)
    return Selection(emit("refine", coarse, fine, candidates=candidates, fraction=fraction))


def union(a: Selection, b: Selection) -> Selection:
    """Pages in either selection."""
    if not isinstance(a, Selection) or not isinstance(b, Selection):
        raise mistakes.NOT_A_TENSOR.error(
            caller(), op="union", found=f"{type(a).__name__}, {type(b).__name__}"
        )
    return Selection(emit("union", a.tensor, b.tensor))


def everything() -> Selection:
    """All pages: dense attention."""
    return Selection(emit("everything", builder=_builder()))


def functions() -> dict[str, Any]:
    """The operators by name."""
    own = {n: v for n, v in globals().items() if inspect.isfunction(v) and v.__module__ == __name__}
    named = {n: v for n, v in own.items() if not n.startswith("_") and n != "functions"}
    return {**{n: partial(_of_method, n) for n in (*spellings.METHODS, *_METHODS)}, **named}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    known = functions()
    if name in known:
        return known[name]
    raise mistakes.UNKNOWN_OP.error(caller(), where="ops", name=name, near=mistakes.nearest(name, known))
