"""Sums over channels of a function of a query and of signs, in the form that matrix products take.

A function of a sign is linear in it, `f(s) = (f(1) + f(-1)) / 2 + s (f(1) - f(-1)) / 2`, and one of two signs, a code
of four levels, has a term for each of them, one for their product and one without. So a sum over channels of, say,
`|q - s (2 + t)|` is a number of the query plus three products of what the query makes of itself with signs, and the
product of two signs is a sign, too. Equal in real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from vortex_core.ir.graph import MAX_CANONICAL, Graph, GraphBuilder
from vortex_core.ir.program import StateDecl
from vortex_core.ir.prune import pruned
from vortex_core.ir.query_work import of_pages

MOST_SIGNS = 2  # of one function: three would take seven products
_VIEWS = ("slice", "split", "rename", "channels")
# What is finite wherever its arguments are; the rest would turn infinite terms into no number.
_BOUNDED = (
    "abs", "maximum", "minimum", "sign", "floor", "lt", "le", "eq", "not", "and", "or", "where", "sigmoid", "tanh",
)  # fmt: skip
_EXACT: Mapping[str, Callable[..., float]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "maximum": max,
    "minimum": min,
    "neg": lambda x: -x,
    "abs": abs,
}
Signs = frozenset[int]
"""Loads of the old graph whose signs are multiplied."""
Polynomial = dict[Signs, int]
"""Factors of products of signs, nodes of the new graph; that of the empty product is what does not depend on them."""


def in_planes(graph: Graph, states: Mapping[str, StateDecl]) -> Graph:
    """The index graph with such sums taken apart; the same object where there are none."""
    if not any(s.dtype == "bits" for s in states.values()):
        return graph
    made = _Rewriter(graph, states)
    if not made.changed:
        return graph
    return pruned(made.out.graph({n: made.new[i] for n, i in graph.writes}, made.result))


class _Rewriter:
    def __init__(self, graph: Graph, states: Mapping[str, StateDecl]) -> None:
        self.graph, self.states = graph, states
        self.out = GraphBuilder("index", limit=4 * MAX_CANONICAL)
        self.changed = False
        self.new: list[int] = []
        self.paged: list[bool] = []
        self._known: dict[tuple[Any, ...], int] = {}
        self._location: Any = None
        for i, node in enumerate(graph.nodes):
            self._location = node.location
            self.paged.append(of_pages(node) or any(self.paged[j] for j in node.inputs))
            taken = self._taken(i) if node.op == "sum" else None
            self.changed |= taken is not None
            inputs = [self.new[j] for j in node.inputs]
            self.new.append(self._add(node.op, *inputs, **node.attr) if taken is None else taken)
        self.result = None if graph.result is None else self.new[graph.result]

    def _taken(self, i: int) -> int | None:
        """A sum in another form, None where it stays."""
        source, dims = self.graph.nodes[i].inputs[0], self.graph.nodes[i].attr["dims"]
        if not self.paged[source] or set(dims) & {"page", "head"} or self._is_product(source):
            return None
        signs = self._signs(source)
        if not signs or len(signs) > MOST_SIGNS or not all(self._suits(j, dims) for j in signs):
            return None
        terms = self._polynomial(source)
        if any(not set(self.out.nodes[c].type.names) <= {"head", *dims} for c in terms.values()):
            return None
        found = [self._total(terms.pop(frozenset()), dims)] if frozenset() in terms else []
        for of, factor in terms.items():
            if not set(dims) & set(self.out.nodes[factor].type.names):
                # A product wants a number for each channel.
                none = self._add("iota", dim=dims[-1], extent=str(self._extent(dims[-1])))
                factor = self._add("add", factor, self._add("mul", self._const(0.0), none))
            parts = [factor, *(self.new[j] for j in sorted(of))]
            found.append(self._add("sum", self._joined("mul", parts), dims=dims))
        return self._joined("add", found) if found else None

    def _is_product(self, i: int) -> bool:
        """Whether a node is a product of the query and of signs already."""
        node = self.graph.nodes[i]
        if node.op == "mul":
            return all(self._is_product(j) for j in node.inputs)
        return not self.paged[i] or self._is_sign(i)

    def _is_sign(self, i: int) -> bool:
        """Whether a node is a state of signs, or a view of one."""
        while self.graph.nodes[i].op in _VIEWS:
            (i,) = self.graph.nodes[i].inputs
        node = self.graph.nodes[i]
        return node.op == "load" and of_pages(node) and self.states[node.attr["name"]].dtype == "bits"

    def _signs(self, i: int) -> set[int] | None:
        """The signs that a node is a function of, None where it is one of anything else."""
        node = self.graph.nodes[i]
        if not self.paged[i]:
            return set()
        if self._is_sign(i):
            return {i}
        if node.op not in (*_BOUNDED, "add", "sub", "neg", "mul"):
            return None
        found: set[int] = set()
        for j in node.inputs:
            more = self._signs(j)
            if more is None:
                return None
            found |= more
        return found

    def _suits(self, i: int, dims: tuple[str, ...]) -> bool:
        """Whether all channels of a row of signs can be read together: several dimensions of them as they lie."""
        node = self.graph.nodes[i]
        names = node.type.names
        if "head" in names or not set(dims) <= set(names):
            return False
        if len(dims) == 1:
            return True
        if node.op != "load":
            return False
        stored = [n for n, _ in self.states[node.attr["name"]].stored]
        return set(stored[-len(dims) :]) == set(dims)

    # ---- terms ---------------------------------------------------------------------------------------------

    def _polynomial(self, i: int) -> Polynomial:
        """A number as a sum of products of signs. No sign is there twice: its square is 1."""
        node = self.graph.nodes[i]
        if not self.paged[i]:
            return {frozenset(): self.new[i]}
        if self._is_sign(i):
            return {frozenset([i]): self._const(1.0)}
        found: Polynomial = {}
        if node.op == "neg":
            minus = self._const(-1.0)
            return {s: self._make("mul", minus, c) for s, c in self._polynomial(node.inputs[0]).items()}
        if node.op in ("add", "sub", "mul"):
            left, right = (self._polynomial(j) for j in node.inputs)
            if node.op == "mul":
                for (s, a), (t, b) in product(left.items(), right.items()):
                    self._put(found, s ^ t, self._make("mul", a, b))
                return found
            for s in [*left, *(t for t in right if t not in left)]:
                if s in left and s in right:
                    self._put(found, s, self._make(node.op, left[s], right[s]))
                elif s in left:
                    self._put(found, s, left[s])
                else:
                    minus = self._const(1.0 if node.op == "add" else -1.0)
                    self._put(found, s, self._make("mul", minus, right[s]))
            return found
        signs = sorted(self._signs(i) or ())
        values = {
            at: self._at(i, dict(zip(signs, at, strict=True)))
            for at in product((1.0, -1.0), repeat=len(signs))
        }
        share = self._const(1.0 / len(values))
        for bits in product((0, 1), repeat=len(signs)):
            total: int | None = None
            for at, value in values.items():
                minus = sum(b for b, x in zip(bits, at, strict=True) if x < 0) % 2
                if total is None:  # the first has no negative sign
                    total = value
                else:
                    total = self._make("sub" if minus else "add", total, value)
            assert total is not None
            of = frozenset(s for s, b in zip(signs, bits, strict=True) if b)
            self._put(found, of, self._make("mul", share, total))
        return found

    def _put(self, into: Polynomial, of: Signs, factor: int) -> None:
        """Add a term, unless it is nothing."""
        total = factor if of not in into else self._make("add", into[of], factor)
        if self._number(total) == 0:
            into.pop(of, None)
        else:
            into[of] = total

    def _at(self, i: int, signs: Mapping[int, float]) -> int:
        """The value of a node where signs are given."""
        node = self.graph.nodes[i]
        if i in signs:
            return self._const(signs[i])
        if not self.paged[i]:
            return self.new[i]
        return self._make(node.op, *(self._at(j, signs) for j in node.inputs), **node.attr)

    # ---- nodes ---------------------------------------------------------------------------------------------

    def _total(self, factor: int, dims: tuple[str, ...]) -> int:
        """The sum over channels of what no sign is part of."""
        node = self.out.nodes[factor]
        own = tuple(d for d in dims if d in node.type.names)
        found = self._add("sum", factor, dims=own) if own else factor
        for d in dims:
            if d not in own:
                found = self._make("mul", found, self._add("extent", extent=str(self._extent(d))))
        return found

    def _extent(self, dim: str) -> Any:
        return next(
            t.extent(dim) for t in (n.type for n in self.graph.nodes) if dim in t.names and "page" in t.names
        )

    def _number(self, i: int) -> float | None:
        node = self.out.nodes[i]
        return float(node.attr["value"]) if node.op == "const" else None

    def _const(self, value: float) -> int:
        return self._add("const", value=value + 0.0)

    def _make(self, op: str, *args: int, **attrs: Any) -> int:
        """An operation on nodes of the new graph; of numbers their result, and nothing that changes nothing."""
        numbers = [self._number(a) for a in args]
        if op in _EXACT and None not in numbers:
            return self._const(float(_EXACT[op](*numbers)))
        if op == "mul" and 0.0 in numbers:
            return self._const(0.0)
        if op in ("add", "mul"):
            neutral = 0.0 if op == "add" else 1.0
            others = [a for a, n in zip(args, numbers, strict=True) if n != neutral]
            if len(others) == 1:
                return others[0]
        if op == "sub" and args[0] == args[1]:
            return self._const(0.0)
        return self._add(op, *args, **attrs)

    def _joined(self, op: str, parts: list[int]) -> int:
        found = parts[0]
        for j in parts[1:]:
            found = self._add(op, found, j)
        return found

    def _add(self, op: str, /, *inputs: int, **attrs: Any) -> int:
        key = (op, inputs, tuple(sorted(attrs.items())))
        if key not in self._known:
            self._known[key] = self.out.emit(op, inputs, self._location, **attrs)
        return self._known[key]
