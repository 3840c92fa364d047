"""The operators both halves of vortex_torch share, as stand-ins that record into our graph.

Formulas are those of its operator classes and kernels (Infini-AI-Lab/vortex_torch); docs/library.md names the
two places where its tutorial says otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from vortex_core.dialects.vortex_torch import axes as ax
from vortex_core.dialects.vortex_torch.session import METHODS, FieldRef, Session, current
from vortex_core.dialects.vortex_torch.view import View
from vortex_core.errors import VortexError
from vortex_core.flow import ops
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.types import Stage

MASKED = -1e30  # the additive mask of Where*: what vortex_torch uses for minus infinity


class Operator:
    """One operator instance, used at one call site.

    Attributes:
        stage: the method it may be called in.
        inputs: how many tensors it takes.
    """

    stage: ClassVar[Stage] = "index"
    inputs: ClassVar[int] = 1

    def __call__(self, *args: Any, output: Any = None, ctx: Any = None, loc: Any = None) -> Any:
        """Check the call, compute, and write the output argument if there is one."""
        session = self._session(ctx)
        if self.stage == "cache" and loc is not session.loc:
            raise call_error(self, "loc is missing", "pass loc=loc")
        if self.stage == "index" and (loc is not None or output is not None):
            raise call_error(self, "an output or loc was passed", "indexer operators return their result")
        if self.stage == "cache" and len(args) == self.inputs + 1 and output is None:
            args, output = args[:-1], args[-1]
        if len(args) != self.inputs:
            raise call_error(self, f"got {len(args)} tensors", f"pass {self.inputs}")
        result = self.apply(session, *(value(self, a) for a in args))
        if output is None:
            return result
        if not isinstance(output, FieldRef):
            raise call_error(self, f"the output is a {type(output).__name__}", "write into cache[...]")
        session.write(output.name, result)
        return result

    def apply(self, session: Session, *args: View) -> View:
        """The operator itself."""
        raise NotImplementedError

    def _session(self, ctx: Any) -> Session:
        session = current.get()
        if session is None:
            raise call_error(
                self, "called outside the three methods", "call it in forward_cache or forward_indexer"
            )
        if session.stage != self.stage:
            raise call_error(
                self,
                f"called in {METHODS[session.stage]}",
                f"import it from vortex_torch.{'indexer' if session.stage == 'index' else 'cache'}",
            )
        if ctx is not session.context:
            raise call_error(self, "ctx is missing", "pass ctx=ctx")
        if id(self) in session.called:
            raise mistakes.DIALECT_REUSED.error(op=type(self).__name__)
        session.called.add(id(self))
        session.keep.append(self)
        return session


def call_error(op: Operator, why: str, remedy: str) -> VortexError:
    """`VF083`."""
    return mistakes.DIALECT_CALL.error(op=type(op).__name__, why=why, remedy=remedy)


def value(op: Operator, argument: object) -> View:
    """An input as a value."""
    found = argument.read() if isinstance(argument, FieldRef) else argument
    if not isinstance(found, View):
        raise call_error(
            op, f"an input is a {type(found).__name__}", "pass q, cache[...] or another operator's result"
        )
    found.reads += 1
    return found


def check_axis(op: str, dim: object, allowed: tuple[int, ...]) -> int:
    """A constructor's `dim`, or `VF083`."""
    if not isinstance(dim, int) or isinstance(dim, bool) or dim not in allowed:
        raise mistakes.DIALECT_CALL.error(
            op=op,
            why=f"dim={dim!r}",
            remedy=f"dim is {' or '.join(map(str, allowed))}",
        )
    return dim


def check_number(op: str, name: str, found: object) -> float:
    """A constructor's number, or `VF083`."""
    if not isinstance(found, int | float) or isinstance(found, bool) or not abs(found) <= 3e38:
        raise mistakes.DIALECT_CALL.error(op=op, why=f"{name}={found!r}", remedy=f"{name} is a finite number")
    return float(found)


# ---- elementwise ------------------------------------------------------------------------------------


class Unary(Operator):
    """f(x; alpha, beta)."""

    def __init__(self, alpha: float = 0.0, beta: float = 1.0) -> None:
        name = type(self).__name__
        self.alpha, self.beta = check_number(name, "alpha", alpha), check_number(name, "beta", beta)

    def affine(self, x: vTensor) -> vTensor:
        """beta x + alpha."""
        x = x if self.beta == 1.0 else self.beta * x
        return x if self.alpha == 0.0 else x + self.alpha

    def f(self, x: vTensor) -> vTensor:
        """The function."""
        raise NotImplementedError

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        return session.view(self.f(x.tensor), x.axes, x.paged)


class Binary(Operator):
    """g(x, y; alpha, beta), broadcast over axes of size 1."""

    inputs = 2

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        name = type(self).__name__
        self.alpha, self.beta = check_number(name, "alpha", alpha), check_number(name, "beta", beta)

    def g(self, x: vTensor, y: vTensor) -> vTensor:
        """The function."""
        raise NotImplementedError

    def apply(self, session: Session, *args: View) -> View:
        x, y = args
        return combine(session, type(self).__name__, x, y, self.g, ())


def combine(
    session: Session,
    op: str,
    x: View,
    y: View,
    g: Callable[[vTensor, vTensor], vTensor],
    expanded: tuple[int, ...],
) -> View:
    """Elementwise over the axes that are not `expanded`, Kronecker over those that are."""
    matched = [i for i in (0, 1) if i not in expanded and x.axes[i] and y.axes[i]]
    tx, xs, ty, ys = ax.pair(op, x.tensor, x.axes, y.tensor, y.axes, matched, session.settings.sizes)
    out = [xs[i] + ys[i] if i in expanded else xs[i] or ys[i] for i in (0, 1)]
    return session.view(g(tx, ty), (out[0], out[1]), x.paged or y.paged)


def _make_unary(name: str, f: Callable[[Unary, vTensor], vTensor], beta: float = 1.0) -> type[Unary]:
    def init(self: Unary, alpha: float = 0.0, beta: float = beta) -> None:
        Unary.__init__(self, alpha, beta)

    return type(name, (Unary,), {"__init__": init, "f": f})


def _make_binary(name: str, g: Callable[[Binary, vTensor, vTensor], vTensor]) -> type[Binary]:
    return type(name, (Binary,), {"g": g})


def _relu(op: Unary, x: vTensor) -> vTensor:
    return ops.maximum(x, op.alpha) if op.alpha == op.beta else ops.where(x >= op.alpha, x, op.beta)


def _gate(
    op: Unary, x: vTensor
) -> vTensor:  # 1 / (1 + e^(beta x + alpha)); at the defaults alpha = beta = 0 it is 1/2
    return (-op.beta * x - op.alpha).sigmoid()


UNARY = {
    "Relu": _make_unary("Relu", _relu, 0.0),
    "Sigmoid": _make_unary("Sigmoid", _gate, 0.0),
    "Silu": _make_unary("Silu", lambda op, x: x * _gate(op, x), 0.0),
    "Add_Mul": _make_unary("Add_Mul", lambda op, x: op.affine(x)),
    "Abs": _make_unary("Abs", lambda op, x: op.affine(x).abs()),
    "Log": _make_unary("Log", lambda op, x: op.affine(x).log()),
    "Exp": _make_unary("Exp", lambda op, x: op.affine(x).exp()),
}


def _scaled(weight: float, x: vTensor) -> vTensor:
    return x if weight == 1.0 else weight * x


BINARY = {
    "Multiply": _make_binary("Multiply", lambda op, x, y: x * y),
    "Add": _make_binary("Add", lambda op, x, y: _scaled(op.alpha, x) + _scaled(op.beta, y)),
    "Maximum": _make_binary("Maximum", lambda op, x, y: ops.maximum(x, y)),
    "Minimum": _make_binary("Minimum", lambda op, x, y: ops.minimum(x, y)),
    "WhereEqual": _make_binary("WhereEqual", lambda op, x, y: ops.where(x == y, 0.0, MASKED)),
    "WhereNotEqual": _make_binary("WhereNotEqual", lambda op, x, y: ops.where(x != y, 0.0, MASKED)),
    "WhereGreater": _make_binary("WhereGreater", lambda op, x, y: ops.where(x > y, 0.0, MASKED)),
    "WhereGreaterEqual": _make_binary("WhereGreaterEqual", lambda op, x, y: ops.where(x >= y, 0.0, MASKED)),
    "WhereLess": _make_binary("WhereLess", lambda op, x, y: ops.where(x < y, 0.0, MASKED)),
    "WhereLessEqual": _make_binary("WhereLessEqual", lambda op, x, y: ops.where(x <= y, 0.0, MASKED)),
}


# ---- reductions, products, shapes -------------------------------------------------------------------


class Reduce(Operator):
    """Collapse axis 1 or 2; in the indexer also 0, the pages of the sequence."""

    kind: ClassVar[str] = ""
    allowed: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def __init__(self, dim: int = 1) -> None:
        self.dim = check_axis(type(self).__name__, dim, self.allowed)

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        if self.dim == 0:
            if not x.paged:
                raise call_error(
                    self, f"dim=0 of {x}", "dim=0 reduces over pages; use 1 or 2 for a tensor without them"
                )
            t = ax.materialise(x.tensor, pages=True)
            page = {"sum": t.sum, "mean": t.mean, "max": t.max, "min": t.min, "norm": t.norm}[self.kind]
            return session.view(page("page"), x.axes, False)
        left = tuple(() if i == self.dim - 1 else a for i, a in enumerate(x.axes))
        return session.view(ax.reduce(self.kind, x.tensor, x.axes[self.dim - 1]), (left[0], left[1]), x.paged)


KINDS = {"Mean": "mean", "Max": "max", "Min": "min", "Sum": "sum", "L2Norm": "norm"}
REDUCE = {name: type(name, (Reduce,), {"kind": kind}) for name, kind in KINDS.items()}


class GeMM(Operator):
    """`GeMM(x, y) = y x^T` per page: `x [., Nx, K], y [., Ny, K] -> [., Ny, Nx]`."""

    inputs = 2

    def apply(self, session: Session, *args: View) -> View:
        x, y = args
        sizes = session.settings.sizes
        if x.shape[2] != y.shape[2]:
            raise ax.shape_error(
                "GeMM", f"{x} and {y}", "both last axes are equal", "transpose or reduce one of them"
            )
        matched = [1] if x.axes[1] else []
        tx, xs, ty, ys = ax.pair("GeMM", x.tensor, x.axes, y.tensor, y.axes, matched, sizes)
        product = ax.reduce("sum", tx * ty, xs[1])
        return session.view(product, (ys[0], xs[0]), x.paged or y.paged)


class Reshape(Operator):
    """Row-major regrouping of the two inner axes: `Reshape(-1, x2, y2)`."""

    def __init__(self, batch_dim: int, x2: int, y2: int) -> None:
        if batch_dim != -1 or not all(isinstance(n, int) and n >= 1 for n in (x2, y2)):
            raise mistakes.DIALECT_CALL.error(
                op="Reshape",
                why=f"arguments {batch_dim!r}, {x2!r}, {y2!r}",
                remedy="write Reshape(-1, x2, y2) with whole numbers from 1",
            )
        self.x2, self.y2 = x2, y2

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        _, first, second = x.shape
        if first * second != self.x2 * self.y2:
            raise ax.shape_error(
                "Reshape",
                f"{x} to [{self.x2}, {self.y2}]",
                "the number of elements stays the same",
                "choose x2 and y2 so that x2 * y2 = D0 * D1",
            )
        flat = x.axes[0] + x.axes[1]
        t, left, right = ax.cut("Reshape", x.tensor, flat, self.y2, session.settings.sizes, set())
        return session.view(t, (left, right), x.paged)


class MaskSlice(Operator):
    """alpha inside `[start, end)` of axis `dim`, beta outside; the input lends its shape only."""

    def __init__(self, start: int, end: int, dim: int, alpha: float = 1.0, beta: float = 0.0) -> None:
        self.dim = check_axis("MaskSlice", dim, (1, 2))
        if not all(isinstance(n, int) for n in (start, end)) or not 0 <= start <= end:
            raise mistakes.DIALECT_CALL.error(
                op="MaskSlice", why=f"start={start!r}, end={end!r}", remedy="0 <= start <= end"
            )
        self.start, self.end = start, end
        self.alpha = check_number("MaskSlice", "alpha", alpha)
        self.beta = check_number("MaskSlice", "beta", beta)

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        axis = x.axes[self.dim - 1]
        size = ax.count(axis, session.settings.sizes)
        if self.end > size:
            raise ax.shape_error(
                "MaskSlice",
                f"[{self.start}, {self.end}) of {size}",
                "the range lies inside the axis",
                "lower end",
            )
        if self.start == self.end or (self.start == 0 and self.end == size):
            constant = self.beta if self.start == self.end else self.alpha
            return session.view(ops.constant(constant), x.axes, x.paged)
        at = ax.index(axis, session.settings.sizes)
        # A range that reaches an end of the axis reaches it in every model.
        if self.end == size:
            inside = at >= self.start
        elif self.start == 0:
            inside = at < self.end
        else:
            inside = (at >= self.start) & (at < self.end)
        return session.view(ops.where(inside, self.alpha, self.beta), x.axes, x.paged)


def namespace(stage: Stage, found: dict[str, type[Operator]], **attrs: Any) -> dict[str, type[Operator]]:
    """The same operators for one half of the language."""
    return {
        name: type(name, (cls,), {"stage": stage, "__doc__": inspect.getdoc(cls), **attrs})
        for name, cls in found.items()
    }
