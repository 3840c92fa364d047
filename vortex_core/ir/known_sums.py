"""Sums of products that hold another sum of the graph are computed with it.

The normal form takes products into sums: of `y = sum_d k_d H_cd`, the square `sum_c y_c y_c` is
`sum_cd H_cd sum_b k_bd y_bc` there, a number for each channel before and after a turn. Where all factors of a sum that
is known anyway are among those of another, and no other factor has the dimensions that it sums, it stands for them.
Equal in real numbers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.prune import pruned
from vortex_core.ir.types import Stage

Factors = Counter[int]


def with_known_sums(graph: Graph, stage: Stage) -> Graph:
    """The graph with such sums computed from others; the same object where there are none."""
    sums = [i for i, n in enumerate(graph.nodes) if n.op == "sum" and "page" not in n.attr["dims"]]
    flat = {i: _flat(graph, i) for i in sums}
    taken: dict[int, tuple[Factors, tuple[str, ...]]] = {}
    for i, (factors, dims) in flat.items():
        for j in sorted(flat, key=lambda k: (-flat[k][0].total(), k)):  # the one that stands for most
            own, summed = flat[j]
            if j >= i or own.total() < 2 or not set(summed) < set(dims) or own - factors:
                continue
            if j in _factors(graph, i):
                break  # it is written so
            rest = factors - own
            if not any(set(summed) & set(graph.nodes[k].type.names) for k in rest):
                left = tuple(d for d in dims if d not in summed)
                taken[i] = rest + Counter([j]), left
                break
    if not taken:
        return graph
    out = GraphBuilder(stage, limit=4 * MAX_CANONICAL)
    new: list[int] = []

    def emit(i: int, op: str, *inputs: int, **attrs: Any) -> int:
        return out.emit(op, inputs, graph.nodes[i].location, **attrs)

    for i, node in enumerate(graph.nodes):
        if i in taken:
            factors, dims = taken[i]
            first, *more = (new[j] for j in sorted(factors.elements()))
            for j in more:
                first = emit(i, "mul", first, j)
            new.append(emit(i, "sum", first, dims=dims))
        else:
            new.append(emit(i, node.op, *(new[j] for j in node.inputs), **node.attr))
    result = None if graph.result is None else new[graph.result]
    return pruned(out.graph({n: new[i] for n, i in graph.writes}, result), stage)


def _flat(graph: Graph, i: int) -> tuple[Factors, tuple[str, ...]]:
    """The factors of a sum of products, those of sums among them instead of these, and all that is summed."""
    factors: Factors = Counter()
    dims = list(graph.nodes[i].attr["dims"])
    found = _factors(graph, i)
    for j in found:
        inner = graph.nodes[j]
        others = {n for k in found if k != j for n in graph.nodes[k].type.names}
        own, summed = _flat(graph, j) if inner.op == "sum" and found.count(j) == 1 else (Counter(), ())
        if summed and not set(summed) & {"page", *others, *dims}:
            factors += own
            dims += summed
        else:
            factors[j] += 1
    return factors, tuple(dims)


def _factors(graph: Graph, i: int) -> list[int]:
    """What is multiplied in a sum."""
    todo, found = [*graph.nodes[i].inputs], []
    while todo:
        j = todo.pop()
        if graph.nodes[j].op == "mul":
            todo += graph.nodes[j].inputs
        else:
            found.append(j)
    return found
