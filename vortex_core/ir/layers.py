"""The layer plan: which layers select, which attend to another's selection, which stay dense, and their budgets.

One account for everything that has to know: the cost model, both engines, and `explain`. Layers in
`Knobs.dense_layers` attend to everything. The others, the *sparse* layers, form groups of `Knobs.reuse_layers` in the
order of the model; the first of a group, its *leader*, has page states and selects, and its followers attend to the
same pages. So a group's budget is its leader's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vortex_core.ir.budget import Budget
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program


@dataclass(frozen=True)
class LayerPlan:
    """What each layer of a model does at decode, for one flow.

    Attributes:
        program: the flow's program; one that selects everything has no sparse layers.
        knobs: its settings.
        layers: decoder layers of the model.
    """

    program: Program
    knobs: Knobs
    layers: int

    @cached_property
    def leader(self) -> tuple[int | None, ...]:
        """By layer, the layer whose selection it attends to; None where it attends to everything."""
        found: list[int | None] = [None] * self.layers
        if not self.program.selects_everything:
            sparse = [i for i in range(self.layers) if i not in self.knobs.dense_layers]
            for position, layer in enumerate(sparse):
                found[layer] = sparse[position - position % self.knobs.reuse_layers]
        return tuple(found)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Layers that have page states and select, in order."""
        return tuple(i for i, leader in enumerate(self.leader) if leader == i)

    @cached_property
    def groups(self) -> dict[int, tuple[int, ...]]:
        """By leader, the layers that attend to its selection, itself first."""
        return {at: tuple(i for i, leader in enumerate(self.leader) if leader == at) for at in self.leaders}

    @property
    def sparse_layers(self) -> int:
        """Layers that attend to a selection."""
        return sum(leader is not None for leader in self.leader)

    # ---- budgets

    @cached_property
    def budget_varies(self) -> bool:
        """Whether the budget depends on the layer."""
        return "layer" in Budget(self.knobs.budget).names

    @cached_property
    def budget_layers(self) -> tuple[int, ...]:
        """For each row of a table of budgets, the layer for which the expression is evaluated.

        One row a leader where the budget depends on the layer, otherwise one for all; none without sparse layers.
        """
        return self.leaders if self.budget_varies else self.leaders and (0,)

    def budget_row(self, layer: int) -> int:
        """The row of a sparse layer in a table of budgets: its leader's."""
        leader = self.leader[layer]
        assert leader is not None, f"layer {layer} is dense and has no budget"
        return self.leaders.index(leader) if self.budget_varies else 0

    def row_pages(self, row: int, length: int) -> int:
        """Pages that a sequence of `length` tokens may attend in the layers of a budget row."""
        return self.knobs.pages(length, self.budget_layers[row], self.layers)
