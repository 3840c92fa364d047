"""What a flow's imports give it: the names of the language and nothing behind them.

A module leads on to the modules it imported, and they to `sys`. A facade leads nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from vortex_core.flow import ops
from vortex_core.flow.caller import caller
from vortex_core.flow.vflow import Cache, Page, register, vFlow
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.types import Extent


class Facade:
    """A fixed set of names."""

    __slots__ = ("_known", "_label")

    def __init__(self, label: str, known: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_label", label)
        object.__setattr__(self, "_known", dict(known))

    def __getattr__(self, name: str) -> Any:
        if name in self._known:
            return self._known[name]
        if name.startswith("__"):
            raise AttributeError(name)
        near = mistakes.nearest(name, self._known)
        raise mistakes.UNKNOWN_OP.error(caller(), where=self._label, name=name, near=near)

    def __setattr__(self, name: str, value: object) -> None:
        raise mistakes.FORBIDDEN.error(caller(), what=f"assignment to {self._label}.{name}")


@cache
def language() -> Facade:
    """`vortex_core`, as a flow sees it."""
    known = {
        "Cache": Cache,
        "Knobs": Knobs,
        "Page": Page,
        "Selection": ops.Selection,
        "ops": Facade("ops", ops.functions()),
        "register": register,
        "vFlow": vFlow,
        "vTensor": vTensor,
    }
    return Facade("vortex_core", known)


@cache
def mathematics() -> Facade:
    """`math`, whose functions take values and sizes as well: `math.sqrt(ops.size("D"))`."""
    own = {n: v for n, v in vars(math).items() if not n.startswith("_")}
    return Facade("math", {**own, **{n: _either(n, own[n]) for n in _ON_TENSORS}})


_ON_TENSORS = {
    "sqrt": "sqrt", "exp": "exp", "log": "log", "log2": "log2", "log10": "log10", "log1p": "log1p", "pow": "pow",
    "exp2": "exp2", "expm1": "expm1", "tanh": "tanh", "floor": "floor", "ceil": "ceil", "fabs": "abs",
}  # fmt: skip


def _either(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, *rest: Any) -> Any:
        if isinstance(x, vTensor | Extent):
            return ops.functions()[_ON_TENSORS[name]](x, *rest)
        return plain(x, *rest)

    return call


def importer(name: str, *args: Any) -> Any:
    """Stands in for `__import__` while a flow's module runs; the allow-list has seen the names already."""
    if name == "math":
        return mathematics()
    if name in ("vortex_core", "vortex_core.flow"):
        return language()
    if name == "__future__":
        return Facade(name, {"annotations": None})
    raise ImportError(f"import of {name!r} is not allowed in a flow")
