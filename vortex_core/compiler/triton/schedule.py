"""Scheduling: which launch computes what.

Scoring is one page-parallel launch. Where an operator looks across pages (softmax, normalisation, reductions over
`page`, convolution), a second launch with one program per row continues from values the first one left in scratch,
looping over the row's pages once per barrier. However many barriers there are, scoring takes two launches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vortex_core.compiler.triton.tile import MAX_PADDING, pow2
from vortex_core.ir.cost import crosses_pages
from vortex_core.ir.program import Graph, Node

MAX_TILE = 8192
MAX_PAGES_PER_PROGRAM = 64


@dataclass(frozen=True)
class Schedule:
    """What the launches of the index graph do.

    Attributes:
        level: barriers before each node's value is known.
        barriers: the deepest level; 0 means one scoring launch.
        frontier: nodes the page-parallel launch stores to scratch for the row launch.
        kept: further nodes the row launch stores, by loop: inputs of neighbourhood operators, running sums.
        scores: score nodes, in order of their selections.
    """

    level: tuple[int, ...]
    barriers: int
    frontier: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]
    scores: tuple[int, ...]

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
    scores = tuple(
        sorted({n.inputs[0] for n in graph.nodes if n.spec.group == "select" and len(n.inputs) == 1})
    )
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


def pages_per_program(graph: Graph, sizes: Mapping[str, int], absorbed: Collection[int] = ()) -> int:
    """Pages a scoring program handles, so that its largest tile stays in registers.

    Args:
        absorbed: nodes that are computed inside matrix products and have no tile.
    """

    def lanes(node: Node) -> int:
        """Elements a tile holds for one page; odd numbers of channels are taken in pieces of at most 128."""
        total = 1
        for name, extent in node.type.dims:
            real = 1 if name == "page" else extent.resolve(sizes)
            odd = name == "dim" and pow2(real) > MAX_PADDING * real
            total *= min(128, real & -real) if odd else pow2(real)
        return total

    tiles = [n for i, n in enumerate(graph.nodes) if "page" in n.type.names and i not in absorbed]
    largest = max((lanes(n) for n in tiles), default=1)
    pages = max(1, min(MAX_PAGES_PER_PROGRAM, MAX_TILE // max(1, largest)))
    return 1 << (pages.bit_length() - 1)
