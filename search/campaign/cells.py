"""What sort of program a candidate is: its family, how much it keeps for a page, and how much it attends."""

from __future__ import annotations

import math

from vortex_core.geometry import Geometry
from vortex_core.ir.cost import attended_pages, kv_row_bytes, state_bytes_per_token
from vortex_core.ir.flow import Flow
from vortex_core.ir.program import Program

_LENGTH = 8192
"""Tokens at which density is asked: budgets that differ only beside it are of one sort."""


def family(program: Program) -> str:
    """How a program knows about a page, in a word or two: what its states hold, by their shape.

    `token` keeps numbers of every token, `bits` their signs, `parts` something of parts of the page, `page` vectors of
    the page, `number` single numbers. `steps` carries something across decode steps, `mass` reads attention received,
    `layers` that of a dense layer in the same step, `rest` counts what it leaves out, `across` looks across pages.
    """
    if program.selects_everything:
        return "dense"
    shapes = set()
    for state in program.states:
        if state.carried:
            shapes.add("steps")
            continue
        extents = [extent for _, extent in state.dims]
        if any(e.symbol == "S" and e.factor == 1 for e in extents):
            shapes.add("bits" if state.dtype == "bits" else "token")
        elif len(extents) > 1:
            shapes.add("parts")
        else:
            shapes.add("page" if extents else "number")
    if program.needs_mass:
        shapes.add("mass")
    if program.reads_dense_mass:
        shapes.add("layers")
    # A token's single numbers only scale what is kept beside them.
    first = next((s for s in ("bits", "token", "parts", "page", "number") if s in shapes), "position")
    across = any(
        n.op in ("softmax", "cumsum", "conv", "maxpool") or _over_pages(n.attr) for n in program.index.nodes
    )
    if program.residual is not None:
        shapes.add("rest")
    words = [
        first,
        *(s for s in ("steps", "mass", "layers", "rest") if s in shapes),
        *(["across"] if across else []),
    ]
    return "+".join([*words, *([] if program.result.op == "topk" else [program.result.op])])


def _over_pages(attrs: dict[str, object]) -> bool:
    dims = attrs.get("dims", ())
    return isinstance(dims, tuple) and "page" in dims


def cell_of(flow: Flow, geometry: Geometry | None) -> str:
    """The cell of an archive of the best of every sort.

    State bytes count in halvings of the KV bytes, density likewise; without a model's shapes only the family counts.
    """
    if geometry is None:
        return family(flow.program)
    kept = state_bytes_per_token(flow.program, flow.knobs, geometry) / kv_row_bytes(
        geometry, flow.knobs.kv_bytes
    )
    pages = attended_pages(flow.program, flow.knobs, _LENGTH, geometry.layers // 2, geometry.layers)
    lists = geometry.group if flow.program.per_query_head else 1
    density = min(1.0, lists * pages * flow.knobs.page_size / _LENGTH)
    return f"{family(flow.program)}/state {_halvings(kept)}/density {_halvings(density)}"


def _halvings(share: float) -> str:
    if share <= 0:
        return "0"
    return f"1/{2 ** max(0, min(10, round(-math.log2(share))))}"
