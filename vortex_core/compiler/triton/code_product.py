"""Contractions of a query with stored codes: found here, written by `code_emitter`.

A state of low precision is a code times a scale, and the scale of a row does not depend on the channel that is summed:
`sum_d q_d (s c_d) = s sum_d q_d c_d`. Codes have few significant bits, so bf16 holds them exactly, and products of a few
of them too (a sign times a 4-bit number). The query side may be anything: it is one small tile a row, and two bf16
numbers hold 16 of its bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vortex_core.compiler.columns import column_bytes
from vortex_core.compiler.triton.contraction import exact
from vortex_core.compiler.triton.tile import MAX_PAGES_PER_PROGRAM, pow2
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.levels import levels
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
MOST_STEPS = 15  # a byte holds 8 of them: what `unpack_bytes` gives is up to 8
COLUMN_ROWS = 512  # of codes that lie by columns: four of each thread
_VIEWS = ("slice", "split", "rename", "channels")


@dataclass(frozen=True)
class CodeProduct:
    """`sum over dims of query * codes`, times what does not depend on `dims`.

    Attributes:
        dims: the summed dimensions; several are those of a row of signs as it lies.
        query: factors that are the same for every page; dims within head and `dims`.
        codes: page-side factors with `dims`: states, or views of them.
        rest: page-side factors without `dims`.
        exact: whether bf16 holds the query side.
        absorbed: nodes that need no value of their own.
        signs: factors that lie as the only one of `codes` does, all of them signs: so is what is multiplied.
        step: of a query of few values, all of them small multiples of it; 0 for any other.
        most: the largest of those multiples.
    """

    dims: tuple[str, ...]
    query: tuple[int, ...]
    codes: tuple[int, ...]
    rest: tuple[int, ...]
    exact: bool
    absorbed: tuple[int, ...]
    signs: tuple[int, ...] = ()
    step: float = 0.0
    most: int = 0

    @property
    def dim(self) -> str:
        """The last of the summed dimensions, most often the only one."""
        return self.dims[-1]

    def channels(self, graph: Graph, sizes: Mapping[str, int]) -> int:
        """Numbers of a row that are summed."""
        extents = (graph.nodes[self.codes[0]].type.extent(d) for d in self.dims)
        return math.prod(e.resolve(sizes) for e in extents)

    def row_bytes(self, graph: Graph, states: Mapping[str, StateDecl], sizes: Mapping[str, int]) -> int:
        """Bytes of a row's codes, at least one."""
        bits = 0
        for i in (*self.codes, *self.signs):
            state = states[graph.nodes[view(graph, i)[-1]].attr["name"]]
            bits += STORED_BITS[state.dtype] * self.channels(graph, sizes)
        return max(1, bits // 8)


def find_code_products(
    graph: Graph, states: Mapping[str, StateDecl], before: Collection[int] = ()
) -> dict[int, CodeProduct]:
    """The `sum` nodes that are products of a query with codes, by node.

    Args:
        before: nodes that a launch before has computed.
    """
    found = {}
    for i, node in enumerate(graph.nodes):
        if node.op == "sum" and not {"page", "head"} & set(node.attr["dims"]):
            made = _match(graph, states, node.inputs[0], node.attr["dims"], before)
            if made is not None:
                found[i] = made
    return found


def _match(
    graph: Graph, states: Mapping[str, StateDecl], i: int, dims: tuple[str, ...], before: Collection[int]
) -> CodeProduct | None:
    factors, absorbed = factors_of(graph, i, before)
    query: list[int] = []
    codes: list[int] = []
    rest: list[int] = []
    bits = 0
    for f in factors:
        names = set(graph.nodes[f].type.names)
        if "page" not in names:
            if not names <= {"head", *dims}:
                return None
            query.append(f)
        elif not names & set(dims):
            rest.append(f)
        else:
            chain = view(graph, f)
            state = states[graph.nodes[chain[-1]].attr["name"]] if chain else None
            if state is None or "head" in names or state.dtype not in SIGNIFICANT:
                return None
            if state.dtype in SCALED and loaded_dim(graph, chain, dims[-1]) != state.stored[-1][0]:
                return None  # a scale for each channel
            bits += SIGNIFICANT[state.dtype]
            codes.append(f)
            absorbed += chain
    if len(set(codes)) < len(codes):
        return None  # the square of a state: what is written tells codes apart by their node
    if not codes or bits > HELD or not any(set(dims) & set(graph.nodes[f].type.names) for f in query):
        return None
    same = all(_like(graph, states, codes[0], f) for f in codes)
    signs = codes[1:] if same else []
    if len(dims) > 1:
        node = graph.nodes[codes[0]]
        stored = states[node.attr["name"]].stored if same and node.op == "load" else ()
        lies = tuple(n for n, _ in stored[-len(dims) :])
        if set(lies) != set(dims):
            return None
        dims = lies
    held = len(query) == 1 and exact(graph, states, query[0])
    taken = codes[: len(codes) - len(signs)]
    step, most = _step(graph, query) if len(dims) > 1 else (0.0, 0)
    return CodeProduct(
        dims, tuple(query), tuple(taken), tuple(rest), held, tuple(absorbed), tuple(signs), step, most
    )


def _step(graph: Graph, query: Sequence[int]) -> tuple[float, int]:
    """What the values of the query's side are multiples of, and the largest of these, `MOST_STEPS` at most; nothing if
    they are not."""
    found = levels(graph, *query)
    for power in range(-6, 7) if found is not None else ():
        step = 2.0**-power
        if all(v % step == 0 and abs(v) <= MOST_STEPS * step for v in found or ()):
            return step, int(max(abs(v) for v in found or ()) / step)
    return 0.0, 0


@dataclass(frozen=True)
class Total:
    """A sum of products that run as one, and what else is added.

    Attributes:
        products: with a step each.
        others: nodes.
    """

    products: tuple[CodeProduct, ...]
    others: tuple[int, ...]


def find_totals(graph: Graph, products: Mapping[int, CodeProduct]) -> dict[int, Total]:
    """The additions of several products of signs with queries of few values, by node."""
    uses = Counter([j for n in graph.nodes for j in n.inputs] + [j for _, j in graph.writes])
    inside: set[int] = set()
    found = {}

    def terms(i: int, top: bool) -> list[int]:
        node = graph.nodes[i]
        if node.op != "add" or not (top or uses[i] == 1):
            return [i]
        inside.add(i)
        return [k for j in node.inputs for k in terms(j, False)]

    for i in reversed(range(len(graph.nodes))):
        if graph.nodes[i].op != "add" or i in inside or "page" not in graph.nodes[i].type.names:
            continue
        added = terms(i, True)
        taken = [j for j in added if uses[j] == 1 and j in products and products[j].step]
        made = [products[j] for j in taken]
        step = min((c.step for c in made), default=0.0)
        same = len({(c.dims, c.rest, graph.nodes[j].type) for c, j in zip(made, taken, strict=True)}) == 1
        if len(made) > 1 and same and all(c.most * c.step <= MOST_STEPS * step for c in made):
            found[i] = Total(
                tuple(replace(c, step=step) for c in made), tuple(j for j in added if j not in taken)
            )
    return found


def _like(graph: Graph, states: Mapping[str, StateDecl], i: int, j: int) -> bool:
    """Whether two codes are signs that lie in the same places of two states, or of one."""
    chains = view(graph, i), view(graph, j)
    found = [states[graph.nodes[c[-1]].attr["name"]] for c in chains]
    views = [[(graph.nodes[k].op, graph.nodes[k].attrs) for k in c[:-1]] for c in chains]
    return (
        found[0].dtype == found[1].dtype == "bits"
        and found[0].stored == found[1].stored
        and views[0] == views[1]
    )


def factors_of(graph: Graph, i: int, whole: Collection[int] = ()) -> tuple[list[int], list[int]]:
    """The factors of a product, and its `mul` nodes, but those of `whole`."""
    node = graph.nodes[i]
    if node.op != "mul" or i in whole:
        return [i], []
    factors, inside = [], [i]
    for j in node.inputs:
        more, nodes = factors_of(graph, j, whole)
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
    if len(product.dims) > 1:
        return False
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
    lanes = sum(products[i].channels(graph, sizes) for i in inside)
    most = MAX_ROWS // (2 if lanes > MANY_LANES else 1)
    pages = [
        max(1, min(most, MAX_ROW_BYTES // products[i].row_bytes(graph, states, sizes)) // rows[i])
        for i in inside
    ]
    return 1 << (min(pages, default=MAX_PAGES_PER_PROGRAM).bit_length() - 1)
