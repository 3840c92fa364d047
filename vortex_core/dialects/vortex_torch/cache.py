"""`vortex_torch.cache`: what runs once for every completed page."""

from __future__ import annotations

from typing import Any, ClassVar

from vortex_core.dialects.vortex_torch import axes as ax
from vortex_core.dialects.vortex_torch.operators import (
    BINARY,
    KINDS,
    REDUCE,
    UNARY,
    GeMM,
    MaskSlice,
    Operator,
    Reshape,
    call_error,
    check_axis,
    check_number,
    namespace,
)
from vortex_core.dialects.vortex_torch.session import FieldRef, Session
from vortex_core.dialects.vortex_torch.view import View
from vortex_core.ir import mistakes


class Interleave(Operator):
    """Fold consecutive groups of k elements of an axis: `size -> size / k`."""

    kind: ClassVar[str] = ""

    def __init__(self, dim: int = 1, k: int = 2) -> None:
        self.dim = check_axis(type(self).__name__, dim, (1, 2))
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise mistakes.DIALECT_CALL.error(
                op=type(self).__name__, why=f"k={k!r}", remedy="k is a whole number from 1"
            )
        self.k = k

    def apply(self, session: Session, *args: View) -> View:
        (x,) = args
        name, size = type(self).__name__, x.shape[self.dim]
        if size % self.k:
            raise ax.shape_error(
                name, f"{size} in groups of {self.k}", "k divides the axis", "choose a divisor"
            )
        other = x.axes[2 - self.dim]
        t, major, minor = ax.cut(
            name, x.tensor, x.axes[self.dim - 1], self.k, session.settings.sizes, ax.names(other)
        )
        t = ax.reduce(self.kind, t, minor)
        return session.view(t, (major, other) if self.dim == 1 else (other, major), x.paged)


class Fill(Operator):
    """Set a field to a number: `Fill(alpha)(cache[name], loc=loc, ctx=ctx)`."""

    def __init__(self, alpha: float = 0.0) -> None:
        self.alpha = check_number("Fill", "alpha", alpha)

    def __call__(self, *args: Any, output: Any = None, ctx: Any = None, loc: Any = None) -> None:
        session = self._session(ctx)
        if loc is not session.loc:
            raise call_error(self, "loc is missing", "pass loc=loc")
        targets = [a for a in (*args, output) if a is not None]
        if not targets or not isinstance(targets[-1], FieldRef):
            raise call_error(
                self, "its target is no field", "write Fill(alpha)(cache[name], loc=loc, ctx=ctx)"
            )
        session.fill(targets[-1].name, self.alpha)


OPERATORS: dict[str, type[Operator]] = namespace(
    "cache",
    {
        **UNARY,
        **BINARY,
        **{name: cls for name, cls in REDUCE.items() if name != "Sum"},
        **{
            f"{name}Interleave": type(f"{name}Interleave", (Interleave,), {"kind": kind})
            for name, kind in KINDS.items()
            if name != "Sum"
        },
        "GeMM": GeMM,
        "Reshape": Reshape,
        "MaskSlice": MaskSlice,
        "Fill": Fill,
    },
    allowed=(1, 2),
)
_INDEXER_ONLY = "Sum Softmax Normalize Conv1d Transpose Kron Load Save topK"
MISSING = dict.fromkeys(_INDEXER_ONLY.split(), "vortex_torch has it in the indexer only")
