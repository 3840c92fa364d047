"""What a vortex_torch program holds where it believes to hold a tensor `[lead, D0, D1]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from vortex_core.dialects.vortex_torch import axes as ax
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes


@dataclass(eq=False)
class View:
    """A named tensor read by position.

    Attributes:
        tensor: the named tensor; it may lack dimensions along which it is constant.
        axes: the dimensions behind D0 and D1.
        sizes: concrete extents, for shape checks.
        paged: whether the leading axis is the pages of the sequence (forward_indexer), else it is 1.
        field: name of the declared field this is, if it is one.
        reads: how many operators took it as input.
    """

    tensor: vTensor
    axes: ax.Axes
    sizes: ax.Sizes
    paged: bool = False
    field: str | None = None
    reads: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(0 or 1, D0, D1)`: as in the original, 0 stands for the unknown number of pages."""
        first, second = (ax.count(a, self.sizes) for a in self.axes)
        return (0 if self.paged else 1), first, second

    def mean(self, dim: int, keepdim: bool = False) -> View:
        """The one torch method that early programs call on the query."""
        if not keepdim or dim not in (1, 2):
            raise mistakes.DIALECT_TORCH.error(what=f"mean(dim={dim!r}, keepdim={keepdim!r})")
        self.reads += 1
        kept = tuple(() if i == dim - 1 else a for i, a in enumerate(self.axes))
        return View(
            ax.reduce("mean", self.tensor, self.axes[dim - 1]), (kept[0], kept[1]), self.sizes, self.paged
        )

    def __str__(self) -> str:
        lead = "S" if self.paged else "1"
        return f"[{lead}, {self.shape[1]}, {self.shape[2]}]"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise mistakes.DIALECT_TORCH.error(what=f".{name}")


def _refuse(symbol: str) -> Any:
    def method(self: View, *others: object) -> NoReturn:
        raise mistakes.DIALECT_TORCH.error(what=f"the operator {symbol}")

    return method


_SYMBOLS = {
    "add": "+", "radd": "+", "sub": "-", "rsub": "-", "mul": "*", "rmul": "*", "truediv": "/",
    "rtruediv": "/", "neg": "-", "matmul": "@", "pow": "**", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
    "bool": "truth", "float": "float()", "getitem": "[...]", "iter": "iteration", "len": "len()",
}  # fmt: skip
for _name, _symbol in _SYMBOLS.items():
    setattr(View, f"__{_name}__", _refuse(_symbol))
