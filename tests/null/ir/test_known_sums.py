"""A sum of products that holds another sum of the graph is computed with it."""

from __future__ import annotations

from tests.sample_flows import HEADER
from vortex_core import library
from vortex_core.ir.graph import Graph
from vortex_core.ir.known_sums import with_known_sums
from vortex_core.sandbox.jail import run

SOURCE = (
    HEADER
    + """
    def create_cache(self, page):
        return {{"a": page.state(row=page.size, code=16, block="D/16", dtype="bits"), "b": page.state(row=page.size)}}
    def forward_cache(self, page):
        key = page.k.rename(token="row").split("dim", block="D/16")
        turned = key.dot(ops.hadamard(code=16, dim=16), "dim")
        return {{"a": turned, "b": {value}}}
    def forward_indexer(self, q, cache):
        return ops.topk(cache["b"].max("row"))
"""
)


def cache_of(value: str) -> tuple[Graph, Graph]:
    """The graph of pages before and after."""
    graph = run(SOURCE.format(value=value), "x.py").program.cache
    return graph, with_known_sums(graph, "cache")


def largest(graph: Graph) -> int:
    """Dimensions of the value with most of them."""
    return max(len(n.type.names) for n in graph.nodes)


def test_a_square_of_a_sum_is_made_of_the_sum() -> None:
    before, after = cache_of('(turned * turned).sum("block", "code")')
    assert sum(n.op == "sum" for n in before.nodes) == 3
    sums = [n for n in after.nodes if n.op == "sum"]
    assert [set(n.attr["dims"]) for n in sums] == [{"dim"}, {"block", "code"}]
    square = after.nodes[sums[1].inputs[0]]
    assert square.op == "mul" and square.inputs[0] == square.inputs[1]


def test_other_sums_stay_the_same_object() -> None:
    for value in (
        'turned.sum("block", "code")',
        'turned.abs().sum("block", "code")',
        'key.sum("block", "dim")',
    ):
        before, after = cache_of(value)
        assert after is before, value


def test_library_flows_that_gain_nothing_stay() -> None:
    changed = []
    for name in sorted({*library.names(), *library.mla_names()} - set(library.untrained_names())):
        program = library.load(name).program
        if any(
            with_known_sums(g, s) is not g for g, s in ((program.cache, "cache"), (program.index, "index"))
        ):
            changed.append(name)
    assert changed == ["adamas"]
