"""A program as people would write it down: means, differences and quotients instead of what canonicalisation makes of
them. What the formula and the sentence of a program are generated from.

Canonical programs write a mean as a sum times one over a count and a difference as a sum with minus one times; terms
undo both, so that a reader meets the operator its author meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.program import Program

LETTERS: Mapping[str, str] = {"page": "p", "head": "h", "token": "t", "dim": "d", "row": "r"}
"""How an index along a dimension is written; others by their own name."""


@dataclass(frozen=True, eq=False)
class Term:
    """One value of a graph.

    Attributes:
        op: an operator of the IR.
        args: what it is made of.
        attr: attributes by name.
        dims: the dimensions it has, in canonical order.
    """

    op: str
    args: tuple[Term, ...] = ()
    attr: Mapping[str, Any] = field(default_factory=dict)
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Definition:
    """`name = term`: a state, a value used more than once, or the score."""

    name: str
    term: Term


@dataclass(frozen=True)
class Account:
    """A program as terms.

    Attributes:
        cache: what `forward_cache` writes, by state.
        index: what `forward_indexer` writes to carried states.
        selection: which pages a step reads.
    """

    cache: tuple[Definition, ...]
    index: tuple[Definition, ...]
    selection: Term


def account(program: Program, labels: Mapping[str, str] | None = None) -> Account:
    """The terms of a program.

    Args:
        labels: what its states are called; by default their own names.
    """
    named = {s.name: s.name for s in program.states} | dict(labels or {})
    cache, index = _terms(program.cache, named), _terms(program.index, named)
    assert program.index.result is not None
    return Account(
        tuple(Definition(named[n], cache[i]) for n, i in program.cache.writes),
        tuple(Definition(named[n], index[i]) for n, i in program.index.writes),
        index[program.index.result],
    )


def uses(*roots: Term) -> Counter[int]:
    """How often each term is read, by `id`, below some roots."""
    found: Counter[int] = Counter()
    todo = list(roots)
    seen: set[int] = set()
    while todo:
        term = todo.pop()
        if id(term) in seen:
            continue
        seen.add(id(term))
        for arg in term.args:
            found[id(arg)] += 1
            todo.append(arg)
    return found


def _terms(graph: Graph, labels: Mapping[str, str]) -> list[Term]:
    made: list[Term] = []
    for node in graph.nodes:
        made.append(_term(node, [made[i] for i in node.inputs], labels))
    return made


def _term(node: Node, args: list[Term], labels: Mapping[str, str]) -> Term:
    dims = node.type.names
    match node.op:
        case "load":
            return Term("load", (), {"name": labels[node.attr["name"]]}, dims)
        case "mul":
            return _product(args[0], args[1], dims)
        case "add":
            return _sum(args[0], args[1], dims)
    return Term(node.op, tuple(args), node.attr, dims)


def _sum(left: Term, right: Term, dims: tuple[str, ...]) -> Term:
    if left.op == "neg" and right.op != "neg":
        left, right = right, left
    if right.op == "neg":
        return Term("sub", (left, right.args[0]), {}, dims)
    if right.op == "const" and right.attr["value"] < 0:
        return Term("sub", (left, Term("const", (), {"value": -right.attr["value"]})), {}, dims)
    return Term("add", (left, right), {}, dims)


def _product(left: Term, right: Term, dims: tuple[str, ...]) -> Term:
    for one, other in ((left, right), (right, left)):
        if one.op == "const" and one.attr["value"] == -1:
            return Term("neg", (other,), {}, dims)
        if one.op == "div" and one.args[0].op == "const" and one.args[0].attr["value"] == 1:
            count = one.args[1]
            if other.op == "sum" and _counts(count, other):
                return Term("mean", other.args, other.attr, dims)
            return Term("div", (other, count), {}, dims)
    for one, other in ((left, right), (right, left)):
        if one.op == "neg":
            return Term("neg", (_product(one.args[0], other, dims),), {}, dims)
    return Term("mul", (left, right), {}, dims)


def _counts(count: Term, total: Term) -> bool:
    """Whether a number is how many values a sum over one dimension adds."""
    summed = total.attr["dims"]
    if len(summed) != 1:
        return False
    if count.op == "pages":
        return bool(summed[0] == "page")
    symbol = {"head": "G", "token": "S", "dim": "D"}.get(summed[0])
    extent = str(count.attr["extent"]) if count.op == "extent" else ""
    # A part of a dimension (S/4) is counted along the dimension that holds the part.
    return bool(symbol) and extent.partition("/")[0] == symbol
