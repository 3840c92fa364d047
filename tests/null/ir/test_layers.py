"""The layer plan: leaders, followers and budgets of every layer."""

from __future__ import annotations

import pytest

from vortex_core import library
from vortex_core.ir.budget import Budget
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan

QUEST, DENSE = library.load("quest").program, library.load("dense").program


def test_groups_count_sparse_layers_in_order_and_not_layer_numbers() -> None:
    plan = LayerPlan(QUEST, Knobs(dense_layers=(0, 1), reuse_layers=3), 30)
    assert plan.leaders == tuple(range(2, 30, 3)), "ten leaders: the 28 sparse layers in threes"
    assert plan.leader[:6] == (None, None, 2, 2, 2, 5)
    assert plan.groups[2] == (2, 3, 4) and plan.groups[29] == (29,)
    assert plan.sparse_layers == 28 == sum(map(len, plan.groups.values()))


@pytest.mark.parametrize("reuse_layers", [1, 4])
def test_a_dense_layer_may_stand_between_the_layers_of_a_group(reuse_layers: int) -> None:
    plan = LayerPlan(QUEST, Knobs(dense_layers=(1, 4), reuse_layers=reuse_layers), 6)
    assert plan.leader == ((0, None, 0, 0, None, 0) if reuse_layers == 4 else (0, None, 2, 3, None, 5))


@pytest.mark.parametrize(("program", "dense_layers"), [(DENSE, ()), (QUEST, (0, 1, 2))])
def test_without_sparse_layers_there_is_nothing_to_select(program, dense_layers) -> None:
    plan = LayerPlan(program, Knobs(dense_layers=dense_layers, budget="64 * (layer + 1)"), 3)
    assert plan.leader == (None, None, None)
    assert (plan.leaders, plan.sparse_layers, plan.budget_layers) == ((), 0, ())


def test_a_follower_has_its_leaders_budget() -> None:
    knobs = Knobs(page_size=16, budget="64 * (layer + 1)", dense_layers=(1,), reuse_layers=2)
    plan = LayerPlan(QUEST, knobs, 6)
    assert plan.budget_varies and plan.budget_layers == plan.leaders == (0, 3, 5)
    assert [plan.budget_row(layer) for layer in (0, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]
    assert plan.row_pages(plan.budget_row(4), 4096) == knobs.pages(4096, 3, 6) == 16


def test_a_budget_of_the_number_of_layers_is_the_same_for_each() -> None:
    assert Budget("64 * layers + length / 16").names == {"layers", "length"}
    plan = LayerPlan(QUEST, Knobs(page_size=16, budget="64 * layers"), 4)
    assert not plan.budget_varies and plan.budget_layers == (0,)
    assert {plan.budget_row(layer) for layer in range(4)} == {0}
    assert plan.row_pages(0, 4096) == 16
