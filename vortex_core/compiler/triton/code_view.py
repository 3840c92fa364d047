"""Where the codes behind a view lie: what both writers of their products ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vortex_core.compiler.triton.code_product import view
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import state_column, stored_shape
from vortex_core.compiler.triton.packing import BITS, UNITS, Packing, packings
from vortex_core.compiler.triton.tile import LANE, Axis, Env, Tile, order
from vortex_core.ir.program import StateDecl
from vortex_core.ir.types import PLANES, Extent

# Most channels of one product: more of them would hold more registers at a time, and none would be saved.
MAX_LANES = 128


def place(
    e: Emitter, states: Mapping[str, StateDecl], i: int, env: Env, packed: str = ""
) -> tuple[StateDecl, Tile, list[Tile]]:
    """The state behind a view, its row, and its indices as stored.

    Args:
        packed: the dimension that counts units, whose start is in the index already.
    """
    graph, at = e.graph, dict(env)
    chain = view(graph, i)
    for j in chain[:-1]:
        node = graph.nodes[j]
        a = node.attr
        if node.op == "rename":
            at[a["dim"]] = at[a["to"]]
            packed = a["dim"] if packed == a["to"] else packed
        elif node.op == "slice":
            start = 0 if a["start"] == 0 else Extent.parse(a["start"]).resolve(e.sizes)
            if start and packed != a["dim"]:
                at[a["dim"]] = Tile(f"{start} + {at[a['dim']].text}", at[a["dim"]].axes)
        elif node.op == "channels":
            start = e.channel_start(node)
            if start:
                at["dim"] = Tile(f"{start} + {at['dim'].text}", at["dim"].axes)
        else:
            inner = node.type.extent(a["dim"]).resolve(e.sizes)
            axes = order([*at[a["into"]].axes, *at[a["dim"]].axes])
            at[a["dim"]] = Tile(f"{at[a['into']].to(axes)} * {inner} + {at[a['dim']].to(axes)}", axes)
    state = states[graph.nodes[chain[-1]].attr["name"]]
    return state, Tile("page_row", env["page"].axes), [at[n] for n, _ in state.stored]


def lane_name(dim: str) -> str:
    """Name of the axis along which a dimension is summed."""
    return "dim" if dim == "dim" else LANE


def spread(x: Tile, axes: Sequence[Axis]) -> str:
    """A tile with all of some axes, in their order."""
    if tuple(axes) == x.axes:
        return x.text
    if not x.axes:
        return f"tl.full({[a.size for a in axes]}, {x.text}, tl.float32)"
    assert [a for a in axes if a in x.axes] == list(x.axes), (x, axes)
    shape = [a.size for a in axes]
    return f"tl.broadcast_to({x.to(axes)}, {shape})"


def unit_packings(
    e: Emitter,
    states: Mapping[str, StateDecl],
    dim: str,
    first: int,
    real: int,
    units: tuple[int, ...] = UNITS,
) -> list[Packing]:
    """How the packed numbers of a view are taken; none where it is not packed along `dim` in whole units."""
    graph = e.graph
    chain = view(graph, first)
    state = states[graph.nodes[chain[-1]].attr["name"]]
    if state.dtype not in BITS:
        return []
    start = 0
    for i in chain[:-1]:
        node = graph.nodes[i]
        a = node.attr
        if node.op == "rename" and a["to"] == dim:
            dim = a["dim"]
        elif node.op == "slice" and a["dim"] == dim:
            start += 0 if a["start"] == 0 else Extent.parse(a["start"]).resolve(e.sizes)
        elif (node.op == "split" and dim in (a["dim"], a["into"])) or (
            node.op == "channels" and dim == "dim"
        ):
            return []
    if state.stored[-1][0] != dim:
        return []
    width = stored_shape(state, e.sizes)[-1] // PLANES.get(state.dtype, 1)
    column = state_column(state, e.sizes)
    if column:
        return packings(BITS[state.dtype], real, width, start, MAX_LANES, (8 * column,))
    return packings(BITS[state.dtype], real, width, start, MAX_LANES, units)
