"""Products of what a page makes of a query with the codes of its rows: found and written here.

`sum_d f(page, head, d) c(page, row, d)`: the left factor differs from page to page, so that each page is a matrix product
of its own. Two kinds of states lead here: numbers with a scale a channel, `sum_d q_d s_d c_td`, whose scales go to the
query's side, where there is one number of them for all rows of a page; and rows held by their coordinates, against
what the query is in a basis of the page. bf16 holds codes exactly, and two of its numbers hold 16 bits of the other factor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vortex_core.compiler.triton.code_product import HELD, SIGNIFICANT, factors_of, loaded_dim, view
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.tile import pow2
from vortex_core.ir.graph import Graph
from vortex_core.ir.program import SCALED, StateDecl

LEAST_ROWS = 16  # of a page, and channels, that a product takes


@dataclass(frozen=True)
class PageProduct:
    """`sum over dim of query * codes`, times what does not depend on `dim`.

    Attributes:
        dim: the summed dimension.
        query: factors without rows: dims within page, head and `dim`.
        codes: the state with rows, or a view of it.
        rest: factors with rows but without `dim`.
        by_channel: whether each channel of the codes has a scale for all rows, and not each row one for all channels.
        absorbed: nodes that need no value of their own.
    """

    dim: str
    query: tuple[int, ...]
    codes: int
    rest: tuple[int, ...]
    by_channel: bool
    absorbed: tuple[int, ...]


def find_page_products(
    graph: Graph, states: Mapping[str, StateDecl], sizes: Mapping[str, int], others: Collection[int]
) -> dict[int, PageProduct]:
    """The `sum` nodes that are such products, by node.

    Args:
        others: sums that are something else.
    """
    found = {}
    for i, node in enumerate(graph.nodes):
        if node.op != "sum" or i in others or len(node.attr["dims"]) != 1:
            continue
        made = _match(graph, states, sizes, node.inputs[0], node.attr["dims"][0])
        if made is not None:
            found[i] = made
    return found


def _match(
    graph: Graph, states: Mapping[str, StateDecl], sizes: Mapping[str, int], i: int, dim: str
) -> PageProduct | None:
    if dim in ("page", "head"):
        return None
    factors, absorbed = factors_of(graph, i)
    codes: int | None = None
    query: list[int] = []
    rest: list[int] = []
    for f in factors:
        names = set(graph.nodes[f].type.names)
        if names <= {"page", "head", dim}:
            query.append(f)
        elif dim not in names:
            rest.append(f)
        elif codes is None:
            codes = f
        else:
            return None
    if codes is None or not any(dim in graph.nodes[f].type.names for f in query):
        return None
    chain = view(graph, codes)
    if not chain or graph.nodes[codes].type.names[0] != "page" or "head" in graph.nodes[codes].type.names:
        return None
    state = states[graph.nodes[chain[-1]].attr["name"]]
    if SIGNIFICANT.get(state.dtype, HELD + 1) > HELD:
        return None
    by_channel = state.dtype in SCALED and loaded_dim(graph, chain, dim) != state.stored[-1][0]
    if by_channel and (len(chain) > 1 or len(state.dims) != 2):
        return None
    rows = [e.resolve(sizes) for n, e in graph.nodes[codes].type.dims if n not in ("page", dim)]
    if not rows or any(pow2(r) != r for r in rows) or math.prod(rows) < LEAST_ROWS:
        return None
    if graph.nodes[codes].type.extent(dim).resolve(sizes) < LEAST_ROWS:
        return None  # multiplied and added faster
    return PageProduct(dim, tuple(query), codes, tuple(rest), by_channel, (*absorbed, *chain))


def whole_along(e: Emitter, c: PageProduct) -> bool:
    """Whether a factor of the query's side has to be computed along all of the summed dimension at once."""
    return any(e.needs_whole(i, c.dim) for i in c.query)
