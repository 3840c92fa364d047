"""vFlow, the language: what authors import, and how source becomes a program. Imports no torch."""

from __future__ import annotations

from vortex_core.flow import ops
from vortex_core.flow.ops import Selection
from vortex_core.flow.vflow import Cache, Page, register, vFlow
from vortex_core.flow.vtensor import vTensor
from vortex_core.ir.knobs import Knobs

__all__ = ["Cache", "Knobs", "Page", "Selection", "ops", "register", "vFlow", "vTensor"]
