"""Scheduling: which launch of a decode step computes what.

Scoring is one page-parallel launch. Where an operator looks across pages (softmax, normalisation, reductions over
`page`, convolution), a second launch with one program per row continues from values the first one left in scratch,
looping over the row's pages once per barrier. However many barriers there are, scoring takes two launches. The cost
model counts what this says, and the Triton backend generates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vortex_core.ir.graph import Graph, Node


def crosses_pages(node: Node) -> bool:
    """Whether the node combines values of different pages (selection aside)."""
    return "page" in (node.attr.get("dims") or ()) or node.attr.get("dim") == "page"


@dataclass(frozen=True)
class Schedule:
    """What the launches of the index graph do.

    Attributes:
        level: barriers before each node's value is known.
        barriers: the deepest level; 0 means one scoring launch.
        frontier: nodes the page-parallel launch stores to scratch for the row launch.
        kept: further nodes the row launch stores, by loop: inputs of neighbourhood operators, running sums.
        scores: score nodes and the masses of a residual, in order; not the fine score of a refinement.
        parallel: whether there is a page-parallel launch.
        refined: the selection in two stages, if there is one: its fine scores are a launch of their own.
    """

    level: tuple[int, ...]
    barriers: int
    frontier: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]
    scores: tuple[int, ...]
    parallel: bool
    refined: tuple[int, ...] = ()

    @property
    def outputs(self) -> tuple[int, ...]:
        """Nodes that have a number a page as output: scores, and the selection in two stages for its fine ones."""
        return (*self.scores, *self.refined)

    @property
    def stored(self) -> tuple[int, ...]:
        """Nodes whose values pass through scratch, in order: `frontier` and `kept`."""
        return tuple(sorted({*self.frontier, *self.kept_nodes}))

    @property
    def kept_nodes(self) -> tuple[int, ...]:
        """All of `kept`, in order."""
        return tuple(sorted({i for nodes in self.kept.values() for i in nodes}))


def schedule(graph: Graph) -> Schedule:
    """Plan the launches of an index graph."""
    level: list[int] = []
    for node in graph.nodes:
        before = max((level[i] for i in node.inputs), default=0)
        level.append(before + (1 if crosses_pages(node) else 0))
    ranked = {n.scores[0] for n in graph.nodes if n.scores}
    scores = tuple(sorted(ranked | ({graph.residual.mass} if graph.residual else set())))
    alive = _alive(graph, [*scores, *(i for _, i in graph.writes)])
    barriers = max((level[i] for i in alive), default=0)
    frontier: set[int] = set()
    kept: dict[int, set[int]] = {}
    if barriers:
        users = [(i, j) for i in alive for j in graph.nodes[i].inputs]
        wanted = {j for i, j in users if level[i] > 0 and level[j] == 0}
        wanted |= {i for i in (*scores, *(i for _, i in graph.writes)) if level[i] == 0}
        frontier = {j for j in wanted if _worth_storing(graph.nodes[j])}
        for i in alive:
            node = graph.nodes[i]
            if not crosses_pages(node):
                continue
            if node.op in ("conv", "maxpool") and node.inputs[0] not in frontier:
                kept.setdefault(level[i], set()).add(node.inputs[0])
            if node.op == "cumsum":
                kept.setdefault(level[i], set()).add(i)
    return Schedule(
        tuple(level),
        barriers,
        tuple(sorted(frontier)),
        {at: tuple(sorted(nodes)) for at, nodes in sorted(kept.items())},
        scores,
        bool(frontier) if barriers else bool(scores or graph.writes),
        () if graph.refinement is None else (graph.refinement.node,),
    )


def _worth_storing(node: Node) -> bool:
    """Page values that took work; sources are read again instead."""
    return "page" in node.type.names and node.spec.group != "source"


def _alive(graph: Graph, roots: list[int]) -> list[int]:
    seen: set[int] = set()
    while roots:
        i = roots.pop()
        if i not in seen:
            seen.add(i)
            roots += graph.nodes[i].inputs
    return sorted(seen)


def per_page(node: Node, sizes: Mapping[str, int]) -> int:
    """Elements of a node's value for one page."""
    return math.prod(e.resolve(sizes) for n, e in node.type.dims if n != "page")
