"""Contractions over channels that may run on tensor cores without losing anything.

Tensor cores multiply bf16 exactly and add in fp32. So a contraction qualifies when both operands are values that
bf16 holds exactly: the query, bf16, fp8 and bit states, and what selections among them (max, min, abs, where) give.
Three forms are found:

- `sum_d q[h,d] c[p,d]`;
- `sum_d (sum_h q[h,d]) c[p,d]`, run as the former and summed over heads afterwards, because `sum_h q` is not exact;
- `sum_d max(q a, q b)` (Quest's bound), as `sum_d relu(q) max(a,b) + sum_d min(q,0) min(a,b)`, which is equal for
  any a and b: where q >= 0 the larger product is the one with the larger factor, elsewhere the one with the smaller.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.program import StateDecl

EXACT_STATES = ("bf16", "fp8_e4m3", "fp8_e5m2", "bits")


@dataclass(frozen=True)
class Contraction:
    """The two operands of a `sum` of products, seen as a matrix product.

    Operands that bf16 does not hold exactly, such as a bound of 4-bit extrema, are taken in three parts (tf32x3).

    Attributes:
        query: node of the query-side operand, with dims head and dim.
        page: nodes of the page-side operand: one, or the two of a bound.
        bound: None, `maximum` or `minimum`.
        over_heads: whether the result is summed over heads afterwards.
        absorbed: nodes that need no value of their own.
        exact: whether bf16 holds all operands exactly.
    """

    query: int
    page: tuple[int, ...]
    bound: str | None
    over_heads: bool
    absorbed: tuple[int, ...]
    exact: bool = True


def find_contractions(
    graph: Graph, states: Mapping[str, StateDecl], others: Collection[int] = (), *, inexact: bool = False
) -> dict[int, Contraction]:
    """The `sum` nodes of an index graph that are matrix products, by node.

    Args:
        others: sums that are something else.
        inexact: those with operands that bf16 does not hold.
    """
    found = {}
    for i, node in enumerate(graph.nodes):
        if node.op == "sum" and node.attr["dims"] == ("dim",) and i not in others:
            made = (_match_any if inexact else _match)(graph, states, node.inputs[0])
            if made is not None:
                found[i] = made
    return found


def _match(graph: Graph, states: Mapping[str, StateDecl], i: int) -> Contraction | None:
    node = graph.nodes[i]
    if node.op == "mul":
        pair = _sides(graph, node)
        if pair is None or not exact(graph, states, pair[1]):
            return None
        query, over_heads, extra = _query(graph, states, pair[0])
        return None if query is None else Contraction(query, (pair[1],), None, over_heads, (i, *extra))
    if node.op in ("maximum", "minimum"):
        inner = [graph.nodes[j] for j in node.inputs]
        if any(n.op != "mul" for n in inner):
            return None
        sides = [_sides(graph, n) for n in inner]
        if sides[0] is None or sides[1] is None or sides[0][0] != sides[1][0]:
            return None
        query, over_heads, _ = _query(graph, states, sides[0][0])
        if query is None or over_heads or not all(exact(graph, states, s[1]) for s in sides if s is not None):
            return None
        return Contraction(query, (sides[0][1], sides[1][1]), node.op, False, (i, *node.inputs))
    return None


def _match_any(graph: Graph, states: Mapping[str, StateDecl], i: int) -> Contraction | None:
    """As `_match`, whatever holds the operands."""
    node = graph.nodes[i]
    inner = [i] if node.op == "mul" else list(node.inputs) if node.op in ("maximum", "minimum") else []
    if not inner or any(graph.nodes[j].op != "mul" for j in inner):
        return None
    sides = [_sides(graph, graph.nodes[j]) for j in inner]
    first = sides[0]
    if first is None or any(s is None or s[0] != first[0] for s in sides):
        return None
    if graph.nodes[first[0]].type.names != ("head", "dim"):
        return None
    bound = None if node.op == "mul" else node.op
    return Contraction(
        first[0], tuple(s[1] for s in sides if s), bound, False, tuple({i, *inner}), exact=False
    )


def _sides(graph: Graph, node: Node) -> tuple[int, int] | None:
    """(query side, page side) of a product, both with channels."""
    a, b = node.inputs
    names = [graph.nodes[j].type.names for j in (a, b)]
    if any("dim" not in n for n in names):
        return None
    if "page" in names[0] and "page" not in names[1] and "head" not in names[0]:
        return b, a
    if "page" in names[1] and "page" not in names[0] and "head" not in names[1]:
        return a, b
    return None


def _query(graph: Graph, states: Mapping[str, StateDecl], i: int) -> tuple[int | None, bool, tuple[int, ...]]:
    """The exact operand with a head dimension, whether heads are summed afterwards, and what that absorbs."""
    node = graph.nodes[i]
    if node.op == "sum" and node.attr["dims"] == ("head",):
        inner = node.inputs[0]
        if graph.nodes[inner].type.names == ("head", "dim") and exact(graph, states, inner):
            return inner, True, (i,)
        return None, False, ()
    return (
        (i, False, ())
        if node.type.names == ("head", "dim") and exact(graph, states, i)
        else (None, False, ())
    )


def exact(graph: Graph, states: Mapping[str, StateDecl], i: int) -> bool:
    """Whether bf16 holds every value of node `i` exactly, given a bf16 query."""
    node = graph.nodes[i]
    match node.op:
        case "q":
            return True
        case "load":
            return states[node.attr["name"]].dtype in EXACT_STATES
        case "const":
            (bits,) = struct.unpack("<I", struct.pack("<f", node.attr["value"]))
            same = struct.unpack("<f", struct.pack("<I", bits))[0] == node.attr["value"]
            return bool(same and bits & 0xFFFF == 0)
        case "neg" | "abs" | "maximum" | "minimum" | "slice" | "channels" | "split" | "rename" | "concat":
            return all(exact(graph, states, j) for j in node.inputs)
        case "where":
            return all(exact(graph, states, j) for j in node.inputs[1:])
        case "mul":
            a, b = node.inputs
            return (_unit(graph, a) and exact(graph, states, b)) or (
                _unit(graph, b) and exact(graph, states, a)
            )
    return False


def _unit(graph: Graph, i: int) -> bool:
    """Whether node `i` is 0 or a signed power of two everywhere: a factor that keeps numbers exact."""
    node = graph.nodes[i]
    if node.op == "const":
        value = node.attr["value"]
        return value == 0 or abs(math.frexp(value)[0]) == 0.5
    if node.op == "where":
        return all(_unit(graph, j) for j in node.inputs[1:])
    return node.op in ("neg", "rename", "slice", "split") and all(_unit(graph, j) for j in node.inputs)


class Product(Protocol):
    """Something a `sum` is computed as."""

    @property
    def absorbed(self) -> tuple[int, ...]:
        """Nodes that need no value of their own."""
        ...


def absorbed_nodes(graph: Graph, contractions: Mapping[int, Product]) -> set[int]:
    """Nodes whose only uses are inside contractions."""
    users: dict[int, set[int]] = {}
    for i, node in enumerate(graph.nodes):
        for j in node.inputs:
            users.setdefault(j, set()).add(i)
    inside = {j for c in contractions.values() for j in c.absorbed}
    roots = {i for _, i in graph.writes}
    gone: set[int] = set()
    for j in sorted(inside, reverse=True):
        if j not in roots and all(u in contractions or u in gone for u in users.get(j, set())):
            gone.add(j)
    return gone
