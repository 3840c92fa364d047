"""What depends on the query alone and is dear: computed once a row, in a launch of its own, and not by every program.

A mask of the 16 largest channels compares every channel with every other; a learned gate multiplies by a matrix; how
alike this step's query and an earlier one are is a sum over all of their channels. A scoring launch has thousands of
programs, and each would do it again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vortex_core.ir.graph import Graph, Node

_LONG = 32  # a mask, softmax or convolution along so many numbers
_MANY = 4096  # numbers of a value


def of_pages(node: Node) -> bool:
    """Whether a node is read for each page; the states of requests are not."""
    return node.spec.group == "source" and "page" in node.type.names


def query_work(graph: Graph, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The nodes whose values pages need and a launch before computes, in order."""
    paged: list[bool] = []
    dear: list[bool] = []
    own: list[bool] = []  # it reads a state of the request
    for node in graph.nodes:
        paged.append(of_pages(node) or any(paged[j] for j in node.inputs))
        own.append(node.attr.get("scope") == "request" or any(own[j] for j in node.inputs))
        joined = own[-1] and node.spec.group == "reduce"  # such as how alike two queries are
        dear.append(joined or _dear(node, sizes) or any(dear[j] for j in node.inputs))
    wanted = {
        j for i, node in enumerate(graph.nodes) for j in node.inputs if paged[i] and dear[j] and not paged[j]
    }
    return tuple(sorted(wanted))


def _dear(node: Node, sizes: Mapping[str, int]) -> bool:
    elements = math.prod(e.resolve(sizes) for n, e in node.type.dims if n != "page")
    if node.spec.group == "scan" and node.attr["dim"] != "page":
        return node.attr.get("k", 2) > 1 and node.type.extent(node.attr["dim"]).resolve(sizes) >= _LONG
    return elements >= _MANY and not set(node.type.names) <= {"head", "dim"}  # not the query's own size
