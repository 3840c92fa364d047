"""What a flow's imports give it: the names of the language and nothing behind them.

A module leads on to the modules it imported, and they to `sys`. A facade leads nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from vortex_core.flow import ops
from vortex_core.flow.vflow import Cache, Page, register, vFlow
from vortex_core.flow.vtensor import caller, vTensor
from vortex_core.ir import mistakes
from vortex_core.ir.knobs import Knobs


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


def importer(name: str, *args: Any) -> Any:
    """Stands in for `__import__` while a flow's module runs; the allow-list has seen the names already."""
    if name == "math":
        return math
    if name in ("vortex_core", "vortex_core.flow"):
        return language()
    if name == "__future__":
        return Facade(name, {"annotations": None})
    raise ImportError(f"import of {name!r} is not allowed in a flow")
