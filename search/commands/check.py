"""`vortex-search check`: what a flow keeps for every page and request, as the memory of one model holds it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from search.commands.explain import dimensions
from vortex_core.flow.trace import Traced
from vortex_core.ir.cost import (
    kv_row_bytes,
    state_bytes,
    state_bytes_per_request,
    state_bytes_per_token,
    state_padding,
)
from vortex_core.ir.program import SCALED


def state_rows(traced: Traced, model: str) -> dict[str, Any]:
    """The states of a flow as stored: sizes in numbers, padding and scales told apart, bytes as a share of K and V.

    Args:
        traced: the flow; states are those the author declared, under their names.
        model: a described model, or a directory or hub id whose configuration gives the dimensions.

    Returns:
        `{"model", "page_size", "states": [...], "share_of_kv", "bytes_a_request"}`; bytes of a state are those of one
        page, or request, and kv head; `bytes_a_request` those of all states of a request in one layer.

    Raises:
        VortexError: unknown model, or `VF013` for a size that is not whole in it.
    """
    geometry, knobs = dimensions(model).geometry(), traced.knobs
    sizes = geometry.symbols(knobs.page_size)
    kv = kv_row_bytes(geometry, knobs.kv_bytes) * knobs.page_size / geometry.kv_heads
    rows = []
    for s in traced.original.states:
        size = state_bytes(s, sizes)
        rows.append(
            {
                "name": s.name,
                "dtype": s.dtype,
                "dims": {n: e.resolve(sizes) for n, e in s.stored},
                "scale_shared_along": s.stored[-1][0] if s.dtype in SCALED else None,
                "bytes": size,
                "padding_bytes": state_padding(s, sizes),
                "scope": s.scope,
                "share_of_kv": 0.0 if s.of_request else size / kv,
            }
        )
    live = state_bytes_per_token(traced.program, knobs, geometry) / kv_row_bytes(geometry, knobs.kv_bytes)
    own = state_bytes_per_request(traced.program, knobs, geometry)
    found = {"model": model, "page_size": knobs.page_size, "states": rows, "share_of_kv": live}
    return {**found, "bytes_a_request": own}


def kernel_rows(traced: Traced, model: str, target: str) -> list[dict[str, Any]]:
    """What the kernels of a flow take of a GPU that need not be here: registers, stack and shared memory.

    Args:
        model: as of `state_rows`; kernels are those of queries in its dtype.
        target: an architecture, of `vortex_core.kernels.offline.TARGETS`.

    Raises:
        VortexError: `VE050` for what cannot be lowered, `VE051` and `VE056` for more than the GPU has, `VK002` for what
            does not compile, `VK003` where this process cannot.
    """
    from evaluators.stages.machine_code import query_dtype
    from vortex_core.compiler.triton.ahead import StepShape, compile_ahead

    spec = dimensions(model)
    dtype = query_dtype(spec)
    shapes = [StepShape(rows, 32768) for rows in (1, 64)]
    found = compile_ahead(traced.program, traced.knobs, spec.geometry(), shapes, target, dtype=dtype)
    return [{"kernel": name, **asdict(use)} for name, use in found.items()]


def kernel_lines(rows: list[dict[str, Any]], target: str) -> list[str]:
    """The same for people, a line each."""
    if not rows:
        return [f"kernels for {target}: attention's alone, which fit"]
    lines = [
        f"  {r['kernel']}: {r['registers']} registers and {r['stack_bytes']:,} bytes of stack a thread, "
        f"{r['shared_bytes']:,} bytes of shared memory a block"
        for r in rows
    ]
    return [f"kernels for {target}, the most that steps of 1 and 64 sequences of 32,768 tokens take:", *lines]


def state_lines(found: dict[str, Any]) -> list[str]:
    """The same for people, a line each."""
    lines = []
    for s in found["states"]:
        dims = ", ".join(f"{n}={size}" for n, size in s["dims"].items())
        scale = f", one scale along {s['scale_shared_along']}" if s["scale_shared_along"] else ""
        padding = f", of which {s['padding_bytes']:.3g} padding" if s["padding_bytes"] else ""
        share = f", {s['share_of_kv']:.3f} of K and V" if s["scope"] == "page" else ""
        lines.append(
            f"  {s['name']} ({dims}) {s['dtype']}{scale}: {s['bytes']} B a {s['scope']} and kv head{padding}{share}"
        )
    where = f"{found['model']} at page {found['page_size']}"
    own = f", and {found['bytes_a_request']:,} B a request and layer" if found["bytes_a_request"] else ""
    return [f"page states, {where}: {found['share_of_kv']:.3f} of K and V{own}", *lines]
