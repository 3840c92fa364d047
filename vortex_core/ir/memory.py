"""What a program needs of memory, known before anything is allocated."""

from __future__ import annotations

from vortex_core.geometry import Geometry
from vortex_core.ir.cost import state_bytes
from vortex_core.ir.graph import Graph
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.ir.schedule import per_page

_NUMBER = 8  # bytes: reference results are computed in fp64


def working_bytes(program: Program, knobs: Knobs, geometry: Geometry, length: int) -> int:
    """Bytes one sequence of `length` tokens takes where values are stored as they are written: page states of every
    layer, and the largest operation of a layer with what it reads.

    A fused kernel needs less; the backends that define the results, on a CPU, need this.
    """
    sizes = geometry.symbols(knobs.page_size)
    pages = -(-length // knobs.page_size)
    rows = geometry.kv_heads * pages
    own = geometry.layers * geometry.kv_heads * sum(state_bytes(s, sizes) for s in program.request_states)
    states = own + geometry.layers * rows * sum(state_bytes(s, sizes) for s in program.page_states)
    return states + max(_largest(program.cache, sizes, rows), _largest(program.index, sizes, rows))


def _largest(graph: Graph, sizes: dict[str, int], rows: int) -> int:
    """The most bytes an operation's value and what it reads take together, of all pages and kv heads."""
    values = [
        _NUMBER * per_page(node, sizes) * (1 if node.type.domain in ("const", "query") else rows)
        for node in graph.nodes
    ]
    used = (values[i] + sum(values[j] for j in node.inputs) for i, node in enumerate(graph.nodes))
    return max(used, default=0)
