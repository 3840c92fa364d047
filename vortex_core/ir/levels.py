"""The few values that a number of the query has, where it follows from signs and comparisons alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from vortex_core.ir.graph import Graph

_DECISIONS = ("sign", "lt", "le", "eq")
_MOST = 6  # decisions that one number follows from
_VALUE: Mapping[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "neg": lambda x: -x,
    "abs": abs,
    "maximum": max,
    "minimum": min,
    "where": lambda mask, x, y: x if mask else y,
    "not": lambda x: not x,
    "and": lambda x, y: x and y,
    "or": lambda x, y: x or y,
}


def levels(graph: Graph, *factors: int) -> frozenset[float] | None:
    """All values that a product of nodes may have, None where they are not few. Decisions of one node about another
    channel or head are others, so that nothing is said of what moves dimensions."""
    decisions: set[int] = set()
    order: list[int] = []
    todo, seen = [*factors], set()
    while todo:
        j = todo.pop()
        if j in seen:
            continue
        seen.add(j)
        node = graph.nodes[j]
        if node.op in _DECISIONS:
            decisions.add(j)
        elif node.op in _VALUE:
            order.append(j)
            todo += node.inputs
        elif node.op != "const":
            return None
    if len(decisions) > _MOST:
        return None
    found = set()
    for taken in product((False, True), repeat=len(decisions)):
        value: dict[int, Any] = {
            j: graph.nodes[j].attr["value"] for j in seen if graph.nodes[j].op == "const"
        }
        for j, yes in zip(sorted(decisions), taken, strict=True):
            value[j] = (1.0 if yes else -1.0) if graph.nodes[j].op == "sign" else yes
        for j in sorted(order):
            value[j] = _VALUE[graph.nodes[j].op](*(value[k] for k in graph.nodes[j].inputs))
        found.add(math.prod(float(value[i]) for i in factors))
    return frozenset(found)
