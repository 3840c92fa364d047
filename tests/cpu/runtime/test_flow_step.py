"""The decode step that both engines run, over a flow that writes down what it is asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from vortex_core import library
from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.launches import launch_costs, layer_launches
from vortex_core.page_list import PageList, one_list_a_sequence
from vortex_core.runtime.budgets import BudgetTable
from vortex_core.runtime.eager_flow import EagerFlow
from vortex_core.runtime.flow_step import FlowStep
from vortex_core.runtime.pool_flow import PoolFlow
from vortex_core.runtime.torch_attention import TorchAttention

SIZE, PAGES, LENGTH = 8, 12, 88
GEOMETRY = Geometry(layers=6, kv_heads=2, group=2, head_dim=16, rope_dim=16, value_dim=16)


class Watched(EagerFlow):
    """Counts the launches that the Triton backend would make: one an update, and those of a selection."""

    def __init__(self, compiled: Any) -> None:
        super().__init__(compiled)
        self.launches = 0
        parts = launch_costs(self.program, self.knobs, GEOMETRY, batch=1, length=LENGTH)
        self.of_a_selection = sum(
            part.cost.launches for part in parts if part.kind not in ("update", "attend", "merge", "residual")
        )

    def merge_residual(self, *given: Any) -> torch.Tensor:
        self.launches += 1
        return super().merge_residual(*given)

    def update_decode(self, *given: Any) -> None:
        self.launches += bool(self.program.states)
        super().update_decode(*given)

    def select_in_place(self, *given: Any) -> PageList:
        self.launches += self.of_a_selection
        return super().select_in_place(*given)


class Attention(TorchAttention):
    """Counts attention with its merge."""

    launches = 0

    def run(self, *given: Any, **named: Any) -> torch.Tensor:
        self.launches += 2 + 3 * (named.get("mass") is not None)  # from log-sums to masses
        return super().run(*given, **named)


class Step(FlowStep):
    """One sequence on pages 0, 1, 2, ... of a random pool."""

    def __init__(self, flow: PoolFlow, attention: Attention) -> None:
        super().__init__(flow, attention, attention)
        self.table = torch.arange(PAGES, dtype=torch.int32)[None]
        self.length = torch.tensor([LENGTH], dtype=torch.int32)
        self.budgets = BudgetTable(flow.plan, LENGTH, torch.device("cpu")) if flow.plan.leaders else None

    def batch(self) -> BatchView:
        return BatchView(self.table, self.length, self.length, LENGTH)

    def scored(self, budget_row: int) -> BatchView:
        assert self.budgets is not None
        self.budgets.cover(LENGTH, LENGTH)
        return BatchView(self.table, self.length, self.budgets.table[budget_row, self.length.long()], LENGTH)

    def all_pages(self) -> PageList:
        return one_list_a_sequence(self.table, self.length, SIZE)

    def kv(self, layer: int, page_size: int) -> LayerKV:
        return self.flow.kv(layer)  # type: ignore[union-attr]


def make(name: str, **knobs: Any) -> tuple[Step, Watched, Attention]:
    random = torch.Generator().manual_seed(0)
    kv = [LayerKV(*torch.randn(2, 2, PAGES, SIZE, 16, generator=random).unbind(0)) for _ in range(6)]
    settings = Knobs(page_size=SIZE, **knobs)
    watched = Watched(backends.get("torch").compile(library.load(name).program, settings, GEOMETRY))
    flow = PoolFlow(watched, kv.__getitem__, PAGES, torch.device("cpu"))
    flow.complete(torch.arange(LENGTH // SIZE))
    attention = Attention(GEOMETRY)
    return Step(flow, attention), watched, attention


LAYERS = list(product([(), (0, 1), (1, 4), (0, 1, 3), tuple(range(6))], [1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("name", "dense_layers", "reuse_layers"),
    [
        (name, *layers)
        for name in ("quest", "twilight", "delta", "retroinfer")
        for layers in LAYERS
        if name != "delta" or 0 in layers[0]  # it reads what a dense layer before attends to
        if name != "retroinfer" or layers[1] == 1  # every layer weighs what it leaves out
    ],
)
def test_a_step_makes_the_launches_that_the_model_counts(
    name: str, dense_layers: tuple[int, ...], reuse_layers: int
) -> None:
    knobs = {"dense_layers": dense_layers, "reuse_layers": reuse_layers, "budget": "24 if layer < 3 else 40"}
    step, watched, attention = make(name, **knobs)
    q = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    for layer in range(GEOMETRY.layers):
        step.attend_pages(layer, q, 0.25)
    assert step.flow is not None
    counted = layer_launches(watched.program, step.flow.knobs, GEOMETRY, batch=1, length=LENGTH)
    ran = watched.launches + attention.launches
    assert ran == sum(cost.launches for layer in counted for cost in layer)
    assert list(step.lists) == list(step.flow.plan.leaders)
    if name == "quest":  # takes all it may; the sequence has more
        for layer, pages in step.lists.items():
            assert pages.counts.tolist() == [[3 if layer < 3 else 5] * 2]


def test_followers_attend_to_their_leaders_pages() -> None:
    step, _, _ = make("block_topk", reuse_layers=2, budget="24")
    q = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
    step.attend_pages(0, q, 0.25)
    out = step.attend_pages(1, q, 0.25)
    pages, kv = step.lists[0], step.kv(1, SIZE)
    for head in range(4):
        ids = pages.page_ids[0, head // 2, : int(pages.counts[0, head // 2])].long()
        k, v = (x[head // 2, ids].flatten(0, 1) for x in (kv.k, kv.v))
        want = torch.softmax(q[0, head] @ k.T * 0.25, -1) @ v
        torch.testing.assert_close(out[0, head], want, atol=1e-5, rtol=1e-5)
