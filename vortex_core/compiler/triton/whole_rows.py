"""Products of a query with codes that lie by columns: each thread takes whole rows.

A matrix product splits the channels of a row among four threads. Columns are read by neighbouring rows, so a thread has
all numbers of its own rows and nothing of others'. Four rows therefore count as one row of the product that is four times
as long, one of them for each of the four threads, and the query's side is zero where a row meets another's channels. The
products that Hopper multiplies by zero would have been padding otherwise: eight columns are the least it takes. Sums come
out where their rows were read, so that neither codes nor sums pass between threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vortex_core.compiler.triton.code_product import CodeProduct, loaded_dim, view
from vortex_core.compiler.triton.fields import state_column, stored_shape
from vortex_core.compiler.triton.packing import BITS
from vortex_core.ir.program import Graph, StateDecl
from vortex_core.ir.types import PLANES, Extent

LEAST_ROWS = 64
THREAD_ROWS = 4
MOST_HEADS = 16  # two a product


@dataclass(frozen=True)
class Columns:
    """The columns of a state that a product reads.

    Attributes:
        bits: of one number.
        unit: bits of a row in a column.
        first: the column where the view starts.
        count: columns that it takes.
        planes: of bits; each has such columns.
        low: bits of a number's place in a long row below those that say whose it is: what Triton takes for the left operand
            of a product, three where bytes are loaded for it.
    """

    bits: int
    unit: int
    first: int
    count: int
    planes: int
    low: int = 2

    @property
    def per(self) -> int:
        """Numbers of a row in a column."""
        return self.unit // self.bits

    @property
    def lanes(self) -> int:
        """Channels of the long rows that a column gives."""
        return THREAD_ROWS * self.per

    def channel(self, column: int, lane: str) -> str:
        """The channel of a lane of a long row, counted from the start of the view."""
        pairs, before = (self.per // 2).bit_length() - 1, self.low - 1
        places = {i: 1 + i if i < before else 2 + self.low + pairs - 1 - i for i in range(pairs)}
        terms = [f"(({lane}) & 1) * {self.per // 2}"]
        terms += [f"((({lane}) >> {at}) & 1) * {1 << i}" for i, at in places.items()]
        return " + ".join([*([str(column * self.per)] if column else []), *terms])


def columns_of(
    graph: Graph, c: CodeProduct, states: Mapping[str, StateDecl], sizes: Mapping[str, int], first: int
) -> Columns | None:
    """How a product reads the factor with the most rows, None where that does not lie by columns along the sum."""
    chain = view(graph, first)
    state = states[graph.nodes[chain[-1]].attr["name"]]
    unit = 8 * state_column(state, sizes)
    if not unit or loaded_dim(graph, chain, c.dim) != state.stored[-1][0]:
        return None
    start, dim = 0, c.dim
    for i in chain[:-1]:
        a = graph.nodes[i].attr
        op = graph.nodes[i].op
        if op == "rename" and a["to"] == dim:
            dim = a["dim"]
        elif op == "slice" and a["dim"] == dim:
            start += 0 if a["start"] == 0 else Extent.parse(a["start"]).resolve(sizes)
        elif (op == "split" and dim in (a["dim"], a["into"])) or (op == "channels" and dim == "dim"):
            return None
    bits, planes = BITS[state.dtype], PLANES.get(state.dtype, 1)
    per = unit // bits
    real = graph.nodes[first].type.extent(c.dim).resolve(sizes)
    if start % per:
        return None
    width = stored_shape(state, sizes)[-1] // planes * 8 // unit
    count = min(-(-real // per), width - start // per)
    return Columns(bits, unit, start // per, count, planes, 3 if unit == 8 else 2)
