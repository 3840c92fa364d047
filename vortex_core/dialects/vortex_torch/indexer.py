"""`vortex_torch.indexer`: what runs at every decode step."""

from __future__ import annotations

from typing import Any

from vortex_core.dialects.vortex_torch import axes as ax
from vortex_core.dialects.vortex_torch.operators import (
    BINARY,
    REDUCE,
    UNARY,
    GeMM,
    MaskSlice,
    Operator,
    Reshape,
    call_error,
    check_axis,
    check_number,
    combine,
    namespace,
    value,
)
from vortex_core.dialects.vortex_torch.session import FieldRef, Session
from vortex_core.dialects.vortex_torch.view import View
from vortex_core.flow import ops
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes

MAX_TAPS = 16  # our centred convolution has at most 31 weights, and a causal one uses half of them


class Kron(Operator):
    """Kronecker product over the axes `dim`, elementwise over the rest."""

    inputs = 2

    def __init__(self, dim: Any = (1, 2)) -> None:
        wanted = (dim,) if isinstance(dim, int) else tuple(dim)
        self.expanded = tuple(sorted({check_axis("Kron", d, (1, 2)) - 1 for d in wanted}))

    def apply(self, session: Session, *args: View) -> View:
        return combine(session, "Kron", args[0], args[1], lambda a, b: a * b, self.expanded)


class Transpose(Operator):
    """Swap the inner axes."""

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        return session.view(x.tensor, (x.axes[1], x.axes[0]), x.paged)


class _OverPages(Operator):
    """Works along the pages of the sequence."""

    def __init__(self, dim: int = 0) -> None:
        check_axis(type(self).__name__, dim, (0,))

    def pages(self, x: View) -> vTensor:
        """The input with its page dimension."""
        if not x.paged:
            raise call_error(self, f"got {x}", "pass a tensor [S, D0, D1]")
        return ax.materialise(x.tensor, pages=True)


class _Scan(_OverPages):
    """Softmax and Normalize: returned, or written over the argument by early programs."""

    def f(self, t: vTensor) -> vTensor:
        """The function."""
        raise NotImplementedError

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        result = session.view(self.f(self.pages(x)), x.axes, True)
        order = len(session.scans)
        if order in session.in_place:
            x.tensor = result.tensor
        session.scans.append((order, x, x.reads, result))
        return result


class Softmax(_Scan):
    """e^(scale x) normalised over pages."""

    def __init__(self, dim: int = 0, scale: float = 1.0) -> None:
        super().__init__(dim)
        self.scale = check_number("Softmax", "scale", scale)

    def f(self, t: vTensor) -> vTensor:
        return (t if self.scale == 1.0 else self.scale * t).softmax("page")


class Normalize(_Scan):
    """Divided by the Euclidean norm over pages."""

    def f(self, t: vTensor) -> vTensor:
        return t.normalize("page")


class Conv1d(_OverPages):
    """Causal filter along pages: `y[s] = sum_k w[k] x[s - k]`, its own weights for every `(d0, d1)`."""

    def __init__(self, weight: Any, dim: int = 0, dtype: object = None, device: object = None) -> None:
        super().__init__(dim)
        try:
            self.weight = [[[float(w) for w in row] for row in plane] for plane in weight]
            first = {len(plane) for plane in self.weight}
            second = {len(row) for plane in self.weight for row in plane}
        except TypeError:
            first = second = set()
        if len(first) != 1 or len(second) != 1 or 0 in first | second:
            raise mistakes.DIALECT_CALL.error(
                op="Conv1d",
                why="weight is no [K, D0, D1] list",
                remedy="pass a nested list of numbers [K, D0, D1]",
            )
        if len(self.weight) > MAX_TAPS:
            raise mistakes.DIALECT_NO_EQUIVALENT.error(
                what=f"Conv1d with {len(self.weight)} taps",
                why=f"a causal filter has at most {MAX_TAPS} here",
                remedy=f"use at most {MAX_TAPS} taps",
            )
        self.shape = (first.pop(), second.pop())

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        t = self.pages(x)
        if x.shape[1:] != self.shape:
            raise ax.shape_error(
                "Conv1d", f"weights of {self.shape} on {x}", "inner axes are equal", "match the weights to x"
            )
        flat = [
            [plane[i][j] for plane in self.weight] for i in range(self.shape[0]) for j in range(self.shape[1])
        ]
        if all(taps == flat[0] for taps in flat):
            return session.view(_causal(t, flat[0]), x.axes, True)
        if len(flat) > 64:
            raise mistakes.DIALECT_NO_EQUIVALENT.error(
                what=f"Conv1d with weights for {len(flat)} channels",
                why="constants are numbers in the program, not tensors",
                remedy="use the same taps for all channels, or at most 64 channels",
            )
        at = ax.index(x.axes[0] + x.axes[1], session.settings.sizes)
        total: vTensor | None = None
        for k in range(len(self.weight)):
            weight: vTensor | float = flat[0][k]
            for i, taps in enumerate(flat[1:], 1):
                weight = ops.where(at == i, taps[k], weight)
            shifted = _causal(t, [0.0] * k + [1.0]) * weight
            total = shifted if total is None else total + shifted
        assert total is not None
        return session.view(total, x.axes, True)


def _causal(t: vTensor, taps: list[float]) -> vTensor:
    return t.conv([*reversed(taps), *([0.0] * (len(taps) - 1))], "page")


class Load(Operator):
    """The value a field has at the start of the step."""

    def __call__(self, *args: Any, ctx: Any = None, **others: Any) -> Any:
        self._session(ctx)
        if len(args) != 1 or others or not isinstance(args[0], FieldRef):
            raise call_error(self, "its argument is no field", "write Load()(cache[name], ctx=ctx)")
        return value(self, args[0])


class Save(Operator):
    """Keep a value for the next step."""

    def __call__(self, *args: Any, ctx: Any = None, **others: Any) -> None:
        session = self._session(ctx)
        if len(args) != 2 or others or not isinstance(args[1], FieldRef):
            raise call_error(self, "its target is no field", "write Save()(x, cache[name], ctx=ctx)")
        session.save(args[1].name, value(self, args[0]))


# ---- what ends forward_indexer ----------------------------------------------------------------------


class _Output(Operator):
    def finish(self, session: Session, output: object, selection: ops.Selection) -> None:
        """Record the result, once."""
        if output is not session.output:
            raise call_error(self, "its target is not o", "pass o")
        if session.result is not None:
            raise mistakes.DIALECT_OUTPUT.error(found="two output operators")
        session.result = selection

    def score(self, x: View) -> vTensor:
        """A `[S, 1, 1]` score."""
        if not x.paged or x.shape[1:] != (1, 1):
            raise ax.shape_error(
                type(self).__name__,
                str(x),
                "a score is [S, 1, 1]",
                "reduce heads and channels with Mean, Max or Sum",
            )
        return ax.materialise(x.tensor, pages=True)


class TopKOutput(_Output):
    """The best pages: `topK()(score, o, ctx=ctx)`."""

    recall = 1.0

    def __call__(self, *args: Any, ctx: Any = None, **others: Any) -> None:
        session = self._session(ctx)
        if len(args) != 2 or others:
            raise call_error(self, f"got {len(args)} arguments", "pass score and o")
        score = self.score(value(self, args[0]))
        self.finish(session, args[1], ops.topk(score, recall=self.recall))


class ApproxTopK(TopKOutput):
    """`approxTopK(tolerate_ratio)`: recall at least 1 - tolerate_ratio (ours is never below one half)."""

    def __init__(self, tolerate_ratio: float = 0.0) -> None:
        ratio = check_number("approxTopK", "tolerate_ratio", tolerate_ratio)
        if not 0.0 <= ratio <= 1.0:
            raise mistakes.DIALECT_CALL.error(
                op="approxTopK", why=f"tolerate_ratio={ratio}", remedy="tolerate_ratio is from 0 to 1"
            )
        self.recall = max(0.5, 1.0 - ratio)


class Stream:
    """Pages chosen by one `TopK(k)`: stands for its block table and, the same object again, its lengths."""

    def __init__(self, score: vTensor, k: int) -> None:
        self.score, self.k = score, k


class TopK(_Output):
    """One of several streams: `tables, lengths = TopK(k)(score, ctx=ctx)`."""

    def __init__(self, k: int) -> None:
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise mistakes.DIALECT_CALL.error(op="TopK", why=f"k={k!r}", remedy="k is a whole number from 1")
        self.k = k

    def __call__(self, *args: Any, ctx: Any = None, **others: Any) -> tuple[Stream, Stream]:
        session = self._session(ctx)
        if len(args) != 1 or others:
            raise call_error(self, f"got {len(args)} arguments", "pass the score only")
        stream = Stream(self.score(value(self, args[0])), self.k)
        session.streams.append(self.k)
        return stream, stream


class Union(_Output):
    """The pages of two streams: `Union()((t0, n0), (t1, n1), o, ctx=ctx)`."""

    def __call__(self, *args: Any, ctx: Any = None, **others: Any) -> None:
        session = self._session(ctx)
        pairs = args[:2]
        fits = all(
            isinstance(p, tuple | list) and len(p) == 2 and isinstance(p[0], Stream) and p[0] is p[1]
            for p in pairs
        )
        if len(args) != 3 or others or not fits:
            raise call_error(
                self, "its inputs are no (tables, lengths) pairs of TopK", "pass two results of TopK and o"
            )
        total = sum(session.streams)
        if total != pairs[0][0].k + pairs[1][0].k:
            raise call_error(self, "a TopK stream is left out", "use exactly two TopK")
        a, b = (ops.topk(p[0].score, fraction=_share(p[0].k, total)) for p in pairs)
        self.finish(session, args[2], a | b)


def _share(k: int, total: int) -> float:
    """The fraction of the budget that is exactly k pages; backends count ten-thousandths, rounded up."""
    return (10_000 * k // total) / 10_000


OPERATORS: dict[str, type[Operator]] = namespace(
    "index",
    {
        **UNARY,
        **BINARY,
        **REDUCE,
        "GeMM": GeMM,
        "GeMV": GeMM,
        "Kron": Kron,
        "Transpose": Transpose,
        "Reshape": Reshape,
        "MaskSlice": MaskSlice,
        "Softmax": Softmax,
        "Normalize": Normalize,
        "Conv1d": Conv1d,
        "Load": Load,
        "Save": Save,
        "topK": TopKOutput,
        "approxTopK": ApproxTopK,
        "TopK": TopK,
        "Union": Union,
    },
)
_LEARNED = "its values come from a checkpoint, which the program's source does not contain"
MISSING = {
    "Parameter": _LEARNED,
    "LearnedQuery": _LEARNED,
    "Context": "it is the engine's, not the program's",
    "get_ctx": "it is the engine's, not the program's",
}
