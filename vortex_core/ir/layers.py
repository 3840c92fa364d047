"""The layer plan: which layers select, which attend to another's selection, which stay dense, and their budgets.

One account for everything that has to know: the cost model, both engines, and `explain`. Layers in
`Knobs.dense_layers` attend to everything. The others, the *sparse* layers, form groups of `Knobs.reuse_layers` in the
order of the model; the first of a group, its *leader*, has page states and selects, and its followers attend to the
same pages. So a group's budget is its leader's.

A program that reads dense mass (`ops.dense_mass`) selects by what the nearest dense layer before a leader attends to;
its groups begin anew after each dense layer, so that no layer follows a selection by an older one's mass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from vortex_core.ir import mistakes
from vortex_core.ir.budget import Budget
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program


def check_dense_layers(program: Program, knobs: Knobs) -> None:
    """Raises `VF067` for a program that reads dense mass where the first layer of a model is not dense."""
    if not program.reads_dense_mass or 0 in knobs.dense_layers:
        return
    at = next(n.location for n in program.index.nodes if n.op == "dense_mass")
    raise mistakes.NO_DENSE_LAYER.error(at, found=knobs.dense_layers, layer=0)


def check_reuse(program: Program, knobs: Knobs) -> None:
    """Raises `VF068` for a residual under knobs by which a layer attends to a selection that it did not make."""
    for name in ("reuse_steps", "reuse_layers"):
        value = getattr(knobs, name)
        if program.residual is not None and value > 1:
            at = next(n.location for n in program.index.nodes if n.op == "residual")
            raise mistakes.RESIDUAL_REUSED.error(at, name=name, value=value)


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
            leader, followers = 0, self.knobs.reuse_layers
            for layer in range(self.layers):
                if layer in self.knobs.dense_layers:
                    if self.program.reads_dense_mass:
                        followers = self.knobs.reuse_layers
                    continue
                if followers == self.knobs.reuse_layers:
                    leader, followers = layer, 0
                found[layer] = leader
                followers += 1
        return tuple(found)

    @cached_property
    def leaders(self) -> tuple[int, ...]:
        """Layers that have page states and select, in order."""
        return tuple(i for i, leader in enumerate(self.leader) if leader == i)

    @cached_property
    def groups(self) -> dict[int, tuple[int, ...]]:
        """By leader, the layers that attend to its selection, itself first."""
        return {at: tuple(i for i, leader in enumerate(self.leader) if leader == at) for at in self.leaders}

    @cached_property
    def mass_layer(self) -> dict[int, int]:
        """By leader, the dense layer whose attention mass its program reads; empty where it reads none.

        Raises:
            VortexError: `VF067` where a leader has no dense layer before it.
        """
        if not self.program.reads_dense_mass or not self.leaders:
            return {}
        check_dense_layers(self.program, self.knobs)
        dense = [i for i, leader in enumerate(self.leader) if leader is None]
        return {at: max(i for i in dense if i < at) for at in self.leaders}

    @cached_property
    def mass_layers(self) -> frozenset[int]:
        """Dense layers whose attention mass a later layer reads."""
        return frozenset(self.mass_layer.values())

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
