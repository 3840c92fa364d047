"""A graph without what nothing needs."""

from __future__ import annotations

from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.types import Stage


def pruned(graph: Graph, stage: Stage = "index") -> Graph:
    """The graph of the nodes that the selection or a written state depends on, in their order."""
    result = graph.result
    alive: set[int] = set()
    todo = [*([] if result is None else [result]), *(i for _, i in graph.writes)]
    while todo:
        i = todo.pop()
        if i not in alive:
            alive.add(i)
            todo += graph.nodes[i].inputs
    out = GraphBuilder(stage, limit=4 * MAX_CANONICAL)
    place: dict[int, int] = {}
    for i in sorted(alive):
        node = graph.nodes[i]
        place[i] = out.emit(node.op, [place[j] for j in node.inputs], node.location, **node.attr)
    return out.graph({name: place[i] for name, i in graph.writes}, None if result is None else place[result])
