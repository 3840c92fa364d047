"""The layer plan: leaders, followers and budgets of every layer."""

from __future__ import annotations

import pytest

from vortex_core import library
from vortex_core.errors import VortexError
from vortex_core.ir.budget import Budget
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan

QUEST, DENSE = library.load("quest").program, library.load("dense").program
TIDAL = library.load("tidaldecode").program


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


def test_dense_mass_is_of_the_nearest_dense_layer_and_no_group_outlives_it() -> None:
    plan = LayerPlan(TIDAL, Knobs(dense_layers=(0, 1, 2, 5), reuse_layers=64), 9)
    assert plan.leader == (None, None, None, 3, 3, None, 6, 6, 6)
    assert plan.mass_layer == {3: 2, 6: 5} and plan.mass_layers == {2, 5}
    plan = LayerPlan(TIDAL, Knobs(dense_layers=(0, 3), reuse_layers=2), 8)
    assert plan.leader == (None, 1, 1, None, 4, 4, 6, 6)
    assert plan.mass_layer == {1: 0, 4: 3, 6: 3}
    assert LayerPlan(QUEST, Knobs(dense_layers=(0, 3), reuse_layers=64), 8).mass_layer == {}


def test_a_layer_without_a_dense_one_before_it_is_refused() -> None:
    with pytest.raises(VortexError) as refused:
        _ = LayerPlan(TIDAL, Knobs(dense_layers=(1, 3)), 8).mass_layer
    assert refused.value.code == "VF067"
    assert LayerPlan(TIDAL, Knobs(dense_layers=tuple(range(8))), 8).mass_layer == {}


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
