"""vortex_core: the library a user imports. Names load on first use, so importing it costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vortex_core.flow import Knobs, Page, Selection, ops, register, vFlow, vTensor

__version__ = "0.1.0"
__all__ = ["Knobs", "Page", "Selection", "ops", "register", "vFlow", "vTensor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vortex_core import flow

        return getattr(flow, name)
    raise AttributeError(f"module 'vortex_core' has no attribute {name!r}")
