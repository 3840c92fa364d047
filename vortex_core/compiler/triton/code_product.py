"""Contractions of a query with stored codes: found here, written by `code_emitter`.

A state of low precision is a code times a scale, and the scale of a row does not depend on the channel that is summed:
`sum_d q_d (s c_d) = s sum_d q_d c_d`. Codes have few significant bits, so bf16 holds them exactly, and products of a few
of them too (a sign times a 4-bit number). The query side may be anything: it is one small tile a row, and two bf16
numbers hold 16 of its bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vortex_core.compiler.columns import column_bytes
from vortex_core.compiler.triton.contraction import exact
from vortex_core.compiler.triton.tile import MAX_PAGES_PER_PROGRAM, pow2
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import STORED_BITS

# Significant bits of a stored number, its scale aside.
SIGNIFICANT = {
    "bits": 0,
    "int2": 2,
    "int3": 3,
    "int4": 3,
    "int8": 7,
    "fp8_e4m3": 4,
    "fp8_e5m2": 3,
    "bf16": 8,
}
HELD = 8  # by bf16
# Rows of a product, and bytes of them: more hold more registers, and more shared memory where loads run ahead. Half as
# many where products of more channels than `MANY_LANES` follow each other.
MAX_ROWS = 256
MAX_ROW_BYTES = 32768
MANY_LANES = 256
COLUMN_ROWS = 512  # of codes that lie by columns: four of each thread
_VIEWS = ("slice", "split", "rename", "channels")


@dataclass(frozen=True)
class CodeProduct:
    """`sum over dim of query * codes`, times what does not depend on `dim`.

    Attributes:
        dim: the summed dimension.
        query: factors that are the same for every page; dims within head and `dim`.
        codes: page-side factors with `dim`: states, or views of them.
        rest: page-side factors without `dim`.
        exact: whether bf16 holds the query side.
        absorbed: nodes that need no value of their own.
    """

    dim: str
    query: tuple[int, ...]
    codes: tuple[int, ...]
    rest: tuple[int, ...]
    exact: bool
    absorbed: tuple[int, ...]

    def row_bytes(self, graph: Graph, states: Mapping[str, StateDecl], sizes: Mapping[str, int]) -> int:
        """Bytes of a row's codes, at least one."""
        bits = 0
        for i in self.codes:
            state = states[graph.nodes[view(graph, i)[-1]].attr["name"]]
            bits += STORED_BITS[state.dtype] * graph.nodes[i].type.extent(self.dim).resolve(sizes)
        return max(1, bits // 8)


def find_code_products(graph: Graph, states: Mapping[str, StateDecl]) -> dict[int, CodeProduct]:
    """The `sum` nodes that are products of a query with codes, by node."""
    found = {}
    for i, node in enumerate(graph.nodes):
        if node.op == "sum" and len(node.attr["dims"]) == 1 and node.attr["dims"][0] not in ("page", "head"):
            made = _match(graph, states, node.inputs[0], node.attr["dims"][0])
            if made is not None:
                found[i] = made
    return found


def _match(graph: Graph, states: Mapping[str, StateDecl], i: int, dim: str) -> CodeProduct | None:
    factors, absorbed = factors_of(graph, i)
    query: list[int] = []
    codes: list[int] = []
    rest: list[int] = []
    bits = 0
    for f in factors:
        names = graph.nodes[f].type.names
        if "page" not in names:
            if not set(names) <= {"head", dim}:
                return None
            query.append(f)
        elif dim not in names:
            rest.append(f)
        else:
            chain = view(graph, f)
            state = states[graph.nodes[chain[-1]].attr["name"]] if chain else None
            if state is None or "head" in names or state.dtype not in SIGNIFICANT:
                return None
            if state.dtype in SCALED and loaded_dim(graph, chain, dim) != state.stored[-1][0]:
                return None  # a scale for each channel
            bits += SIGNIFICANT[state.dtype]
            codes.append(f)
            absorbed += chain
    if len(set(codes)) < len(codes):
        return None  # the square of a state: what is written tells codes apart by their node
    if not codes or bits > HELD or not any(dim in graph.nodes[f].type.names for f in query):
        return None
    held = len(query) == 1 and exact(graph, states, query[0])
    return CodeProduct(dim, tuple(query), tuple(codes), tuple(rest), held, tuple(absorbed))


def factors_of(graph: Graph, i: int) -> tuple[list[int], list[int]]:
    """The factors of a product, and its `mul` nodes."""
    node = graph.nodes[i]
    if node.op != "mul":
        return [i], []
    factors, inside = [], [i]
    for j in node.inputs:
        more, nodes = factors_of(graph, j)
        factors += more
        inside += nodes
    return factors, inside


def view(graph: Graph, i: int) -> list[int]:
    """The nodes from a view of a state down to its load; none if it is anything else."""
    chain = [i]
    while graph.nodes[chain[-1]].op in _VIEWS:
        chain.append(graph.nodes[chain[-1]].inputs[0])
    return chain if graph.nodes[chain[-1]].op == "load" else []


def loaded_dim(graph: Graph, chain: list[int], dim: str) -> str:
    """The name that a view's dimension has in the state."""
    for i in chain:
        node = graph.nodes[i]
        if node.op == "rename" and node.attr["to"] == dim:
            dim = node.attr["dim"]
    return dim


def rows_of(node: Node, sizes: Mapping[str, int]) -> int:
    """Rows of one page in a product."""
    return math.prod(pow2(e.resolve(sizes)) for n, e in node.type.dims if n not in ("page", "head"))


def by_columns(
    graph: Graph, states: Mapping[str, StateDecl], sizes: Mapping[str, int], product: CodeProduct
) -> bool:
    """Whether the codes of a product lie by columns: threads load them as they multiply them."""
    state = states[graph.nodes[view(graph, widest(graph, product))[-1]].attr["name"]]
    return column_bytes(state.dtype, [e.resolve(sizes) for _, e in state.stored]) > 0


def widest(graph: Graph, product: CodeProduct) -> int:
    """The code of a product with the most dimensions: its rows are those of the product."""
    return max(product.codes, key=lambda i: len(graph.nodes[i].type.dims))


def token_pages(
    graph: Graph,
    states: Mapping[str, StateDecl],
    sizes: Mapping[str, int],
    products: Mapping[int, CodeProduct],
    others: Collection[int] = (),
) -> int:
    """The most pages a program takes at once where products have rows inside pages.

    Args:
        others: products whose codes go from memory to registers as those that lie by columns do.
    """
    rows = {i: rows_of(graph.nodes[i], sizes) for i in (*products, *others)}
    inside = [i for i in products if rows[i] > 1]
    if (inside or others) and all(by_columns(graph, states, sizes, products[i]) for i in inside):
        pages = [max(1, COLUMN_ROWS // rows[i]) for i in (*inside, *others)]
        return 1 << (min(pages).bit_length() - 1)
    lanes = sum(graph.nodes[products[i].codes[0]].type.extent(products[i].dim).resolve(sizes) for i in inside)
    most = MAX_ROWS // (2 if lanes > MANY_LANES else 1)
    pages = [
        max(1, min(most, MAX_ROW_BYTES // products[i].row_bytes(graph, states, sizes)) // rows[i])
        for i in inside
    ]
    return 1 << (min(pages, default=MAX_PAGES_PER_PROGRAM).bit_length() - 1)
