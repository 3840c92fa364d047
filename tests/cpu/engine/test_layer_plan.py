"""Both engines do at each layer what the cost model counts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from tests.cpu.engine.spy import spy_on
from tests.cpu.serving.pools import Pool, bundle
from vortex_core import library
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import Cost
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.launches import layer_costs, step_cost

LAYERS, STEPS, PROMPT = 6, 6, 200
DENSE = ((), (0,), (0, 1), (1, 4), (2, 3, 5), tuple(range(LAYERS)))
REUSED = (1, 2, 3, 4)
BUDGET = "64 if layer < 3 else 96"
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def engine(make_engine: Make) -> Any:
    return make_engine(max_tokens=1024, layers=LAYERS)


@pytest.mark.parametrize("reuse_steps", [1, 2, 3])
@pytest.mark.parametrize(("dense_layers", "reuse_layers"), list(product(DENSE, REUSED)))
def test_the_model_counts_the_launches_of_the_embedded_engine(
    engine: Any, ids: Make, dense_layers: tuple[int, ...], reuse_layers: int, reuse_steps: int
) -> None:
    knobs = {"page_size": 16, "dense_layers": dense_layers, "reuse_layers": reuse_layers}
    knobs |= {"reuse_steps": reuse_steps, "budget": BUDGET}
    spy = spy_on(engine, "quest", **knobs)
    prompt = engine.prefill(ids(PROMPT, 0))
    engine.decode([prompt], max_new_tokens=STEPS)
    engine.release(prompt)
    geometry, program, flow = engine.geometry, library.load("quest").program, Knobs(**knobs)
    costs = layer_costs(program, flow, geometry, batch=1, length=PROMPT)
    of = {
        role: step_cost(program, flow, geometry, batch=1, length=PROMPT, role=role).launches
        for role in ("selects", "keeps", "follows")
    }
    selects, leaders = len(spy.selects), len(engine.flow.states)
    ran = selects * of["selects"] + (STEPS * leaders - selects) * of["keeps"]
    ran += STEPS * (LAYERS - leaders) * of["follows"]
    assert STEPS * sum(cost.launches for cost in costs) == pytest.approx(ran)
    # And each layer attends the pages that its leader was allowed.
    for layer, length, (budget,) in spy.selects:
        followers = engine.flow.plan.groups[layer]
        seen = layer_costs(program, flow, geometry, batch=1, length=length)
        assert {seen[i].density * length for i in followers} == {budget * 16}


@pytest.mark.parametrize(("dense_layers", "reuse_layers"), list(product(DENSE, REUSED)))
def test_the_model_counts_the_layers_that_score_on_a_server(
    dense_layers: tuple[int, ...], reuse_layers: int
) -> None:
    geometry = Geometry(layers=LAYERS, kv_heads=2, group=2, head_dim=16, rope_dim=16, value_dim=16)
    pool = Pool(geometry, page=16, pages=20, requests=1, longest=256)
    knobs = {"page_size": 16, "dense_layers": dense_layers, "reuse_layers": reuse_layers, "reuse_steps": 1}
    flow = bundle("quest", **knobs, budget=BUDGET)
    decoder = pool.decoder(flow, "torch")
    pool.prefill(decoder, 0, PROMPT)
    pool.step(decoder, [0])
    costs = layer_costs(flow.program, flow.knobs, geometry, batch=1, length=PROMPT + 1)
    scoring = [i for i, cost in enumerate(costs) if cost.state_bytes]
    assert list(decoder.states) == scoring == list(decoder.lists(1))


def test_a_followers_step_moves_no_page_states() -> None:
    geometry = Geometry(layers=4, kv_heads=2, group=2, head_dim=16, rope_dim=16, value_dim=16)
    quest = library.load("quest").program
    leader, follower = layer_costs(quest, Knobs(budget="64", reuse_layers=2), geometry, batch=1, length=1024)[
        :2
    ]
    assert leader.update_bytes > 0 and leader.state_bytes > 0
    assert (follower.update_bytes, follower.state_bytes) == (0, 0)
    assert leader.kv_bytes == follower.kv_bytes
    kept = step_cost(quest, Knobs(budget="64"), geometry, batch=1, length=1024, role="keeps")
    assert kept.update_bytes == leader.update_bytes and kept.state_bytes == 0
    assert sum([leader, follower], Cost()).launches == leader.launches + follower.launches
