"""Which layers select, which follow, which stay dense, and how many pages each may take at each length."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.serving.errors import unsupported_flow


@dataclass(frozen=True)
class LayerPlan:
    """What each layer of a model does at decode.

    Attributes:
        leader: by layer, the layer whose selection it attends; None: it attends to everything.
        knobs: the flow's settings.
    """

    leader: tuple[int | None, ...]
    knobs: Knobs

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Layers that select and have page states."""
        return tuple(i for i, leader in enumerate(self.leader) if leader == i)

    @property
    def sparse(self) -> int:
        """Layers that attend to a selection."""
        return sum(leader is not None for leader in self.leader)

    @cached_property
    def budget_rows(self) -> dict[int, int]:
        """Row of each leader in `budget_table`."""
        varies = re.search(r"\blayer\b", self.knobs.budget) is not None
        return {layer: row if varies else 0 for row, layer in enumerate(self.leaders)}

    def budget_table(self, longest: int) -> list[array[int]]:
        """Pages a row may attend, by budget row and by length from 0 to `longest` tokens."""
        layers = len(self.leader)
        of_row = {row: layer for layer, row in reversed(self.budget_rows.items())}
        varies = len(of_row) > 1
        return [
            array(
                "i",
                [0, *(self.knobs.pages(n, layer if varies else 0, layers) for n in range(1, longest + 1))],
            )
            for _, layer in sorted(of_row.items())
        ]


def layer_plan(program: Program, knobs: Knobs, layers: int) -> LayerPlan:
    """The plan of a flow on a model of `layers` layers, as the embedded engine has it.

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
    if program.selects_everything:
        return LayerPlan((None,) * layers, knobs)
    sparse: Sequence[int] = [i for i in range(layers) if i not in knobs.dense_layers]
    size = knobs.reuse_layers
    leader: list[int | None] = [None] * layers
    for position, layer in enumerate(sparse):
        leader[layer] = sparse[position - position % size]
    return LayerPlan(tuple(leader), knobs)
