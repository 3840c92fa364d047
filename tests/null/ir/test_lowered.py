"""What a step computes: reductions inside pages before other pages are known, contractions in the form of products."""

from __future__ import annotations

import pytest

from tests.sample_flows import HEADER
from vortex_core import library
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import Graph
from vortex_core.ir.query_work import query_work
from vortex_core.ir.schedule import per_page, schedule
from vortex_core.sandbox.jail import run

SIZES = Geometry(1, 8, 4, 128, 128, 128).symbols(64)


def graph_of(body: str) -> Graph:
    source = (
        HEADER
        + """
    def create_cache(self, page):
        return {"a": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
                "b": page.state(row=page.size, dim=page.head_dim, dtype="int4"),
                "c": page.state(dim=page.head_dim), "norm": page.state(row=page.size),
                "far": page.state(row=page.size, dim=page.head_dim, dtype="bits"),
                "third": page.state(row=page.size, dim=page.head_dim, dtype="bits")}
    def forward_cache(self, page):
        key = page.k.rename(token="row")
        return {"a": key, "b": page.v.rename(token="row"), "c": page.k.mean("token"), "norm": key.norm("dim"),
                "far": key.abs() - 1, "third": key.abs() - 2}
    def forward_indexer(self, q, cache):
"""
        + "".join(f"        {line}\n" for line in body.strip().splitlines())
    )
    return run(source, "x.py").program.lowered.index


@pytest.mark.parametrize("name", ["twilight", "sparq", "nsa"])
def test_a_softmax_over_tokens_leaves_a_few_numbers_a_page(name: str) -> None:
    program = library.load(name).program
    stored = [
        sum(per_page(p.index.nodes[i], SIZES) for i in schedule(p.index).stored)
        for p in (program, program.lowered)
    ]
    heads = SIZES["G"]
    assert stored[0] >= 2 * 4 * heads
    assert stored[1] <= 3 * heads


@pytest.mark.parametrize("name", ["block_topk", "quest", "gqa_block_topk", "snapkv", "dense"])
def test_what_has_nothing_to_gain_stays_the_same_object(name: str) -> None:
    program = library.load(name).program
    assert program.lowered is program


def test_a_sum_that_needs_other_pages_in_every_row_stays() -> None:
    graph = graph_of("""
x = (q * cache["b"]).sum("dim")
return ops.topk((x * x.max("page")).exp().sum("row").mean("head"))
""")
    assert any("row" in graph.nodes[i].type.names for i in schedule(graph).stored)


def test_a_contraction_with_a_sum_of_states_is_taken_apart() -> None:
    graph = graph_of("""
x = (q * (0.7 * cache["a"] + 0.3 * cache["b"])).sum("dim")
return ops.topk(x.max("row").max("head"))
""")
    assert sum(n.op == "sum" and n.attr["dims"] == ("dim",) for n in graph.nodes) == 2
    assert not any(n.op == "add" and "dim" in n.type.names for n in graph.nodes)


def test_what_does_not_depend_on_pages_is_multiplied_first() -> None:
    graph = library.load("masked_quest").program.lowered.index
    masked = [n for n in graph.nodes if n.op == "mul" and n.type.names == ("head", "dim")]
    assert len(masked) == 1
    assert not any(n.op == "mul" and n.type.names == ("page", "dim") for n in graph.nodes)


@pytest.mark.parametrize(("name", "count"), [("sparq", 2), ("rocketkv", 1), ("twilight", 0), ("quest", 0)])
def test_masks_of_the_query_are_computed_once_a_row(name: str, count: int) -> None:
    graph = library.load(name).program.lowered.index
    work = query_work(graph, SIZES)
    assert bool(work) == bool(count)
    assert all("page" not in graph.nodes[i].type.names for i in work)


SUMS = {  # a sum over channels of a function of the query and of signs, and how many products it is
    '(q - cache["a"]).abs()': 1,
    '(q - cache["a"] * (2 + cache["far"])).abs()': 3,
    'ops.where(q < cache["a"], q, cache["far"])': 3,
    'q * cache["a"] * (2 + cache["far"])': 2,
    '(q - cache["a"]).square()': 1,
    'q * (cache["a"] - 1).abs()': 1,
}


@pytest.mark.parametrize("function", SUMS)
def test_functions_of_signs_are_products(function: str) -> None:
    graph = graph_of(f'return ops.topk(({function}).sum("dim").max("row").max("head"))')
    sums = [n for n in graph.nodes if n.op == "sum" and "page" in n.type.names]
    assert len(sums) == SUMS[function]
    assert all(graph.nodes[n.inputs[0]].op == "mul" for n in sums)
    rows = [n.op for n in graph.nodes if {"page", "row", "dim"} <= set(n.type.names)]
    assert set(rows) <= {"load", "mul"}


@pytest.mark.parametrize(
    "function",
    [
        "q * cache['a']",  # a product already
        "(q - cache['b']).abs()",  # a scale of each token
        "(q - cache['a'] * cache['c']).abs()",
        "(q - cache['a'] * cache['norm']).abs()",
        "(q - cache['a'] * (2 + cache['far']) * (2 + cache['third'])).abs()",  # seven products
        "((q + cache['a']).exp())",
    ],
)
def test_functions_of_anything_else_stay(function: str) -> None:
    graph = graph_of(f'return ops.topk(({function}).sum("dim").max("row").max("head"))')
    assert sum(n.op == "sum" for n in graph.nodes) == 1


def test_a_difference_of_codes_is_three_products() -> None:
    graph = library.load("adamas").program.lowered.index
    sums = [n for n in graph.nodes if n.op == "sum" and "page" in n.type.names]
    assert len(sums) == 3
    assert all(graph.nodes[n.inputs[0]].op == "mul" for n in sums)
