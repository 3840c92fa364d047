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
from vortex_core.compiler.triton.tile import powers_of_two
from vortex_core.ir.graph import Graph
from vortex_core.ir.program import StateDecl
from vortex_core.ir.types import PLANES, Extent

LEAST_ROWS = 64
THREAD_ROWS = 4
MOST_HEADS = 16  # two a product
# Channels of the long rows of one product. Compilers take less time for fewer products; more channels hold more registers.
MOST_LANES = 64
# Columns of a byte or two are put together to words, unless that pads a row by more.
MOST_PADDING = 1.15


@dataclass(frozen=True)
class Columns:
    """The columns of a state that a product reads.

    Attributes:
        bits: of one number.
        unit: bits of a row that are taken at once, a word of one column or of several narrow ones.
        first: the column where the view starts.
        count: words that it takes.
        planes: of bits; each has such columns.
        column: bits of a row in a column.
        columns: how many there are, from `first` on.
        low: bits of a number's place in a long row below those that say whose it is: what Triton takes for the left operand
            of a product, three where bytes are loaded for it.
    """

    bits: int
    unit: int
    first: int
    count: int
    planes: int
    column: int
    columns: int
    low: int = 2

    @property
    def per(self) -> int:
        """Numbers of a row in a word."""
        return self.unit // self.bits

    def parts(self, word: int) -> list[int]:
        """The columns of a word, lowest bits first."""
        each = self.unit // self.column
        return [self.first + n for n in range(word * each, min(self.columns, (word + 1) * each))]

    def groups(self) -> list[tuple[int, int]]:
        """`(first, columns)` of what is multiplied at once."""
        return powers_of_two(self.count, max(1, MOST_LANES // (THREAD_ROWS * self.per)))

    def lanes(self, columns: int) -> int:
        """Channels of the long rows that so many columns give."""
        return THREAD_ROWS * self.per * columns

    def channel(self, first: int, columns: int, lane: str) -> str:
        """The channel of a lane of a long row of some columns, counted from the start of the view."""
        pairs, before = (self.per // 2).bit_length() - 1, self.low - 1
        own = columns.bit_length() - 1
        places = {i: 1 + i if i < before else 2 + self.low + own + pairs - 1 - i for i in range(pairs)}
        terms = [f"(({lane}) & 1) * {self.per // 2}"]
        terms += [f"((({lane}) >> {at}) & 1) * {1 << i}" for i, at in places.items()]
        if own:
            terms.append(f"((({lane}) >> {2 + self.low}) & {columns - 1}) * {self.per}")
        return " + ".join([*([str(first * self.per)] if first else []), *terms])

    def step(self, columns: int, lane: str) -> str:
        """By what a query is multiplied where single bits are numbers without a shift each: see `kernels.unpack.pairs`."""
        pairs, before = (self.per // 2).bit_length() - 1, self.low - 1
        own = columns.bit_length() - 1
        low = [1 + i if i < before else 2 + self.low + own + pairs - 1 - i for i in range(2)]
        at = f"(({lane} >> {low[0]}) & 1) + (({lane} >> {low[1]}) & 1) * 2"
        return f"(32 >> (({at} + 1) & 3)).to(tl.float32)"

    def pair(self, first: int, columns: int, lane: str) -> str:
        """The channel of a number in the order in which the factors of a page are taken: column, pair, half."""
        terms = [f"(({lane}) & {self.per - 1} & -2) // 2", f"(({lane}) & 1) * {self.per // 2}"]
        if columns > 1:
            terms.append(f"(({lane}) // {self.per}) * {self.per}")
        return " + ".join([*([str(first * self.per)] if first else []), *terms])


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
    columns = min(-(-real // per), width - start // per)
    words = [w for w in (32, 16) if w > unit and -(-columns * unit // w) * w <= MOST_PADDING * columns * unit]
    word = next(iter(words), unit)
    count = -(-columns * unit // word)
    return Columns(bits, word, start // per, count, planes, unit, columns, 3 if unit == 8 else 2)
