"""Contractions in the form that matrix products take: one state at a time, heads apart.

`sum_d q_d (a x_d + b y_d)` needs the sum in full precision for every token. `a sum_d q_d x_d + b sum_d q_d y_d`
reads the codes of x and of y as they are stored, which is what matrix products take. Equal in real numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vortex_core.ir.program import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.prune import pruned
from vortex_core.ir.query_work import OF_PAGES

_VIEWS = ("slice", "split", "rename", "channels")


def distributed(graph: Graph) -> Graph:
    """The index graph with such contractions taken apart; the same object where there are none."""
    made = _Rewriter(graph)
    if not made.changed:
        return graph
    return pruned(made.out.graph({n: made.new[i] for n, i in graph.writes}, made.result))


class _Rewriter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.out = GraphBuilder("index", limit=2 * MAX_CANONICAL)
        self.changed = False
        self.new: list[int] = []
        self.paged: list[bool] = []
        self._known: dict[tuple[Any, ...], int] = {}
        for i, node in enumerate(graph.nodes):
            self.paged.append(node.op in OF_PAGES or any(self.paged[j] for j in node.inputs))
            taken = self._taken(i) if node.op == "sum" else self._grouped(i) if node.op == "mul" else None
            self.changed |= taken is not None
            inputs = [self.new[j] for j in node.inputs]
            self.new.append(self._add(i, node.op, *inputs, **node.attr) if taken is None else taken)
        self.result = None if graph.result is None else self.new[graph.result]

    def _add(self, at: int, op: str, /, *inputs: int, **attrs: Any) -> int:
        key = (op, inputs, tuple(sorted(attrs.items())))
        if key not in self._known:
            self._known[key] = self.out.emit(op, inputs, self.graph.nodes[at].location, **attrs)
        return self._known[key]

    def _flat(self, op: str, i: int) -> list[int]:
        node = self.graph.nodes[i]
        return [k for j in node.inputs for k in self._flat(op, j)] if node.op == op else [i]

    def _joined(self, at: int, op: str, parts: Sequence[int]) -> int:
        found = parts[0]
        for j in parts[1:]:
            found = self._add(at, op, found, j)
        return found

    def _taken(self, i: int) -> int | None:
        """A sum in another form, None where it stays."""
        node = self.graph.nodes[i]
        dims, source = node.attr["dims"], self.graph.nodes[node.inputs[0]]
        if len(dims) == 1:
            return self._apart(i)
        if (
            source.op in ("maximum", "minimum")
            and "page" in source.type.names
            and set(dims) == {"dim", "head"}
        ):
            bound = self._add(i, "sum", self.new[node.inputs[0]], dims=("dim",))
            return self._add(i, "sum", bound, dims=("head",))  # a bound of each head is a matrix product
        return None

    def _grouped(self, i: int) -> int | None:
        """A product with what does not depend on pages multiplied first: once a program, not once a page."""
        factors = self._flat("mul", i)
        free = [f for f in factors if not self.paged[f]]
        paged = [f for f in factors if self.paged[f]]
        if not paged or sum(bool(self.graph.nodes[f].type.names) for f in free) < 2:
            return None
        sides = [self._joined(i, "mul", [self.new[f] for f in side]) for side in (free, paged)]
        return self._add(i, "mul", *sides)

    def _apart(self, i: int) -> int | None:
        nodes, (dim,) = self.graph.nodes, self.graph.nodes[i].attr["dims"]
        factors = self._flat("mul", self.graph.nodes[i].inputs[0])
        sums = [f for f in factors if nodes[f].op == "add" and {"page", dim} <= set(nodes[f].type.names)]
        others = [f for f in factors if f not in sums]
        if len(sums) != 1 or not others or not any(dim in nodes[f].type.names for f in others):
            return None
        terms = []
        for term in self._flat("add", sums[0]):
            parts = self._flat("mul", term)
            states = [f for f in parts if dim in nodes[f].type.names]
            scalars = [f for f in parts if f not in states]
            if len(states) != 1 or not self._is_state(states[0]) or any(nodes[f].type.names for f in scalars):
                return None
            product = self._joined(i, "mul", [self.new[f] for f in (*others, states[0])])
            total = self._add(i, "sum", product, dims=(dim,))
            terms.append(self._joined(i, "mul", [*(self.new[f] for f in scalars), total]))
        return self._joined(i, "add", terms)

    def _is_state(self, i: int) -> bool:
        while self.graph.nodes[i].op in _VIEWS:
            (i,) = self.graph.nodes[i].inputs
        return self.graph.nodes[i].op == "load"
