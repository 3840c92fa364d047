"""The layer plan of a flow on a server, and its budgets by length."""

from __future__ import annotations

from array import array

from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.program import Program
from vortex_core.serving.errors import unsupported_flow


def layer_plan(program: Program, knobs: Knobs, layers: int) -> LayerPlan:
    """The plan of a flow on a model of `layers` layers.

    Raises:
        VortexError: `VE034` for what a decode step that is captured once cannot do.
    """
    if knobs.reuse_steps > 1:
        raise unsupported_flow(
            f"reuse_steps={knobs.reuse_steps}: a captured step selects at every step",
            "set reuse_steps=1; selections are the same at the steps that select",
        )
    if program.needs_mass:
        raise unsupported_flow("it reads attention mass", "serve it with the embedded engine")
    return LayerPlan(program, knobs, layers)


def budget_table(plan: LayerPlan, longest: int) -> list[array[int]]:
    """Pages a sequence may attend, by budget row and by length from 0 to `longest` tokens."""
    return [
        array("i", [0, *(plan.row_pages(row, length) for length in range(1, longest + 1))])
        for row in range(len(plan.budget_layers))
    ]
