"""What a page can reduce by itself before any other page is known.

A softmax over all tokens needs the largest logit of the row, so `sum_t exp(x_t - M)` waits for every page. But
`sum_t exp(x_t - M) = exp(m - M) sum_t exp(x_t - m)` with m the largest logit of the page: each page keeps its own
maximum and its own sum, and the launch over rows joins them. What passes between the two launches shrinks from a
number a token to two a page. Equal in real numbers, and no less stable: no exponent is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.prune import pruned
from vortex_core.ir.schedule import crosses_pages

_REDUCTIONS = ("sum", "amax", "amin")
_LOWEST = -3.0e38  # below it a page's maximum is no number to subtract


def page_local(graph: Graph) -> Graph:
    """The index graph with reductions done inside pages where they can be; the same object where nothing changes."""
    if not any(crosses_pages(n) for n in graph.nodes):
        return graph
    made = _Rewriter(graph)
    return made.run() if made.changes() else graph


class _Rewriter:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.out = GraphBuilder("index", limit=2 * MAX_CANONICAL)
        self.level: list[int] = []
        self.changed = False
        self._known: dict[tuple[Any, ...], int] = {}
        self._location: Any = None

    def changes(self) -> bool:
        """Rewrite, and say whether anything changed."""
        self.new: list[int] = []
        for node in self.graph.nodes:
            self._location = node.location
            inputs = [self.new[j] for j in node.inputs]
            if node.op in _REDUCTIONS:
                self.new.append(self.reduced(node.op, inputs[0], node.attr["dims"]))
            else:
                self.new.append(self.add(node.op, *inputs, **node.attr))
        return self.changed

    def run(self) -> Graph:
        """The rewritten graph without what nothing needs any more."""
        assert self.graph.result is not None
        writes = {name: self.new[i] for name, i in self.graph.writes}
        return pruned(self.out.graph(writes, self.new[self.graph.result]))

    def add(self, op: str, /, *inputs: int, **attrs: Any) -> int:
        """A node of the new graph, shared with an equal one."""
        key = (op, inputs, tuple(sorted(attrs.items())))
        if key not in self._known:
            i = self._known[key] = self.out.emit(op, inputs, self._location, **attrs)
            before = max((self.level[j] for j in inputs), default=0)
            self.level.append(before + crosses_pages(self.out.nodes[i]))
        return self._known[key]

    def names(self, i: int) -> tuple[str, ...]:
        """Dimensions of a node of the new graph."""
        return self.out.nodes[i].type.names

    def reduced(self, op: str, x: int, dims: Sequence[str]) -> int:
        """A reduction, a page's own dimensions first where that is known before other pages are."""
        own = tuple(d for d in dims if d != "page")
        if len(own) < len(dims) and own:
            inner = self.reduced(op, x, own)
            if self.level[x] == 0 or self.level[inner] == 0 or self.out.nodes[inner].op != op:
                self.changed = True
                return self.add(op, inner, dims=("page",))
        elif op == "sum" and self.level[x] > 0 and "page" in self.names(x):
            found = self._factored(x, own)
            if found is not None:
                self.changed = True
                return found
        elif op != "sum" and self.out.nodes[x].op == "mul":
            factors = self._flat("mul", x)
            scales = [f for f in factors if self._positive(f)]
            if scales and len(scales) < len(factors):  # the largest number may be known before it is scaled
                rest = self._joined("mul", [f for f in factors if f not in scales])
                self.changed = True
                return self._joined("mul", [self.reduced(op, rest, dims), *scales])
        return self.add(op, x, dims=tuple(dims))

    def _positive(self, i: int) -> bool:
        """Whether a node is one number above zero, the same for all."""
        node = self.out.nodes[i]
        if node.op == "const":
            return bool(node.attr["value"] > 0)
        return node.op == "extent" or (
            node.op in ("sqrt", "mul", "div") and all(self._positive(j) for j in node.inputs)
        )

    def _flat(self, op: str, i: int) -> list[int]:
        node = self.out.nodes[i]
        return [k for j in node.inputs for k in self._flat(op, j)] if node.op == op else [i]

    def _joined(self, op: str, parts: Sequence[int]) -> int:
        found = parts[0]
        for i in parts[1:]:
            found = self.add(op, found, i)
        return found

    def _factored(self, x: int, dims: Sequence[str]) -> int | None:
        """`sum(a exp(x + c) b, dims)` with c and b known only after other pages, as
        `exp(m + c) sum(a exp(x - m)) b`, m the largest x; None where it is no such sum."""
        here: list[int] = []
        after: list[int] = []
        powers: list[int] = []
        for f in self._flat("mul", x):
            target = here if self.level[f] == 0 else powers if self.out.nodes[f].op == "exp" else after
            target.append(f)
        if len(powers) != 1:
            return None
        terms = self._flat("add", self.out.nodes[powers[0]].inputs[0])
        early = [t for t in terms if self.level[t] == 0]
        late = [t for t in terms if self.level[t] > 0]
        fixed = {n for i in (*late, *after) for n in self.names(i)}
        inner = tuple(d for d in dims if d not in fixed)
        if not early or not late or not inner:
            return None
        own = self._joined("add", early)
        over = tuple(d for d in inner if d in self.names(own))
        if not over or "page" not in self.names(own):
            return None
        low = self.add("const", value=_LOWEST)
        top = self.add("maximum", self.reduced("amax", own, over), low)
        small = self.add("exp", self.add("sub", own, top))
        part = self._joined("mul", [small, *here])
        total = self.add("sum", part, dims=inner)
        scaled = self._joined("mul", [self.add("exp", self._joined("add", [*late, top])), total, *after])
        rest = tuple(d for d in dims if d not in inner)
        return self.add("sum", scaled, dims=rest) if rest else scaled
