"""Contractions in the form that matrix products take: one state at a time, heads apart.

`sum_d q_d (a x_d + b y_d)` needs the sum in full precision for every token. `a sum_d q_d x_d + b sum_d q_d y_d`
reads the codes of x and of y as they are stored, which is what matrix products take. Numbers that scale a whole query
come out of the sum, too: `sum_d (c q_d) x_d = c sum_d q_d x_d`, for bf16 holds `q` exactly and seldom `c q`. Equal in
real numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.prune import pruned
from vortex_core.ir.query_work import of_pages

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
            self.paged.append(of_pages(node) or any(self.paged[j] for j in node.inputs))
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
        if not sums and any(self._is_state(f) and dim in nodes[f].type.names for f in others):
            return self._unscaled(i, [self.new[f] for f in others if self.paged[f]], others, dim)
        if len(sums) != 1 or not others or not any(dim in nodes[f].type.names for f in others):
            return None
        terms = []
        for term in self._flat("add", sums[0]):
            parts = self._flat("mul", term)
            states = [f for f in parts if dim in nodes[f].type.names]
            scalars = [f for f in parts if f not in states]
            if len(states) != 1 or not self._is_state(states[0]) or any(nodes[f].type.names for f in scalars):
                return None
            paged = [self.new[f] for f in (*others, states[0]) if self.paged[f]]
            total = self._unscaled(i, paged, others, dim)
            if total is None:
                product = self._joined(i, "mul", [self.new[f] for f in (*others, states[0])])
                total = self._add(i, "sum", product, dims=(dim,))
            terms.append(self._joined(i, "mul", [*(self.new[f] for f in scalars), total]))
        return self._joined(i, "add", terms)

    def _unscaled(self, i: int, paged: list[int], others: Sequence[int], dim: str) -> int | None:
        """A sum of products with what scales the query outside, None where nothing does.

        Args:
            paged: factors of pages, of the new graph.
            others: factors, those of pages left out.
        """
        inside, outside = [], []
        for f in others:
            if self.paged[f]:
                continue
            if not self.graph.nodes[f].type.names:
                outside.append(self.new[f])
                continue
            rest, scale = self._split(f)
            inside.append(rest)
            outside += [] if scale is None else [scale]
        if not outside or not inside:
            return None
        total = self._add(i, "sum", self._joined(i, "mul", [*inside, *paged]), dims=(dim,))
        return self._joined(i, "mul", [*outside, total])

    def _split(self, i: int) -> tuple[int, int | None]:
        """A value of the query without the number that scales it, and that number, None if there is none."""
        node = self.graph.nodes[i]
        if node.op == "mul":
            parts = self._flat("mul", i)
            scales = [self.new[f] for f in parts if not self.graph.nodes[f].type.names]
            others = [self._split(f) for f in parts if self.graph.nodes[f].type.names]
            scales += [s for _, s in others if s is not None]
            if not scales or not others:
                return self.new[i], None
            return self._joined(i, "mul", [r for r, _ in others]), self._joined(i, "mul", scales)
        if node.op in _VIEWS:
            rest, scale = self._split(node.inputs[0])
            return (self.new[i], None) if scale is None else (self._add(i, node.op, rest, **node.attr), scale)
        if node.op == "where":
            mask, *sides = node.inputs
            (a, s), (b, t) = (self._split(j) for j in sides)
            if s is not None and s == t:
                return self._add(i, "where", self.new[mask], a, b), s
        return self.new[i], None

    def _is_state(self, i: int) -> bool:
        while self.graph.nodes[i].op in _VIEWS:
            (i,) = self.graph.nodes[i].inputs
        return self.graph.nodes[i].op == "load"
