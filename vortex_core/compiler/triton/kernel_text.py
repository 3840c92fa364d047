"""What the kernels of a program share: arguments, axes, masks, and the shape of their text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vortex_core.compiler.evaluate import channel_range
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import Node
from vortex_core.ir.program import SCALED, Program


class KernelWriter:
    """Base of the writers of one program's kernels.

    Args:
        program: canonical.
        geometry: the model.
        page_size: tokens per page.
    """

    def __init__(self, program: Program, geometry: Geometry, page_size: int) -> None:
        self.program, self.geometry, self.page_size = program, geometry, page_size
        self.sizes = geometry.symbols(page_size)
        self.states = {s.name: s for s in program.states}
        self.params = {p.name: p for p in program.params}

    def state_args(self) -> list[str]:
        """Arguments for the states, in order."""
        found = []
        for s in self.program.states:
            found.append(f"{s.name}_ptr")
            if s.dtype in SCALED:
                found.append(f"{s.name}_scale_ptr")
        return [*found, *(["mass_ptr"] if self.program.needs_mass else [])]

    def seat_args(self) -> list[str]:
        """Arguments for where requests keep their states: the seat of each sequence, and how many there are."""
        return ["seats_ptr", "pool_seats"] if self.program.request_states else []

    def dense_mass_args(self) -> list[str]:
        """Arguments for the mass of a dense layer, `[row, head, page]` with the pages that a row has room for."""
        return ["dense_mass_ptr", "dense_mass_pages"] if self.program.reads_dense_mass else []

    def param_args(self) -> list[str]:
        """Arguments for the learned parameters of one layer, in order."""
        return [f"param_{p.name}_ptr" for p in self.program.params]

    def param(self, e: Emitter, node: Node, env: Env, kv_head: str) -> Tile:
        """Load a learned parameter: fp32 `[kv_head or 1, *dims]`."""
        found = self.params[node.attr["name"]]
        shape = [extent.resolve(self.sizes) for _, extent in found.dims]
        axes = order([a for n, _ in found.dims for a in env[n].axes])
        mask = self.mask_text(axes, False)
        text = f"param_{found.name}_ptr"
        if any(n == "kv_head" for n, _ in found.axes):
            text += f" + {kv_head} * {math.prod(shape)}"
        for n, (name, _) in enumerate(found.dims):
            text += f" + ({env[name].to(axes)}) * {math.prod(shape[n + 1 :])}"
        guard = "" if mask is None else f", mask={mask}, other=0.0"
        return e.bind(f"tl.load({text}{guard})", axes, False)

    def kernel(self, name: str, args: Sequence[str], constants: Sequence[str], body: Sequence[str]) -> str:
        """The source text of one kernel."""
        head = ", ".join([*args, *(f"{c}: tl.constexpr" for c in (*constants, "PDL"))])
        body = ["await_previous(PDL)", *body]
        return "@triton.jit\ndef " + name + f"({head}):\n" + "\n".join(f"    {line}" for line in body) + "\n"

    def axes_lines(self, emitter: Emitter) -> list[str]:
        """Definitions of the index variables."""
        return [f"{a.index} = tl.arange(0, {a.size})" for _, a in sorted(emitter.axes.items())]

    @staticmethod
    def mask_text(axes: Sequence[Axis], page_ok: bool) -> str | None:
        """Condition on real lanes of a tile with `axes`."""
        parts = []
        for a in axes:
            if a.name == "page" and page_ok:
                parts.append(Tile("page_ok", (a,)).to(axes))
            elif a.mask is not None:
                parts.append(Tile(f"({a.mask})", (a,)).to(axes))
        return " & ".join(parts) or None

    def channel_start(self, node: Node) -> int:
        """First channel of a `channels` node."""
        return channel_range(node, self.geometry)[0]


def literal(value: Tile) -> Tile:
    """A value as a tile expression, numbers included."""
    return (
        value
        if value.text.startswith(("v", "tl.full"))
        else Tile(f"tl.full([], {value.text}, tl.float32)", value.axes)
    )


def full(value: Tile, axes: Sequence[Axis]) -> str:
    """A value with every axis of `axes` at full size."""
    if tuple(axes) == value.axes:
        return value.text
    shape = ", ".join(str(a.size) for a in axes)
    return f"tl.zeros([{shape}], tl.float32) + ({value.to(axes)})"
