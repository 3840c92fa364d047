"""The text of products of what a page makes of a query with the codes of its rows: see `page_product`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vortex_core.compiler.triton.code_emitter import CodeEmitter, lane_name, spread
from vortex_core.compiler.triton.code_product import view
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import code_text, scale_text, state_column, unit_text
from vortex_core.compiler.triton.packing import BITS
from vortex_core.compiler.triton.page_product import LEAST_ROWS, PageProduct, whole_along
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order
from vortex_core.ir.program import SCALED

MOST_LANES = 64  # channels of one product
LEAST_BYTES = 32
THREADS = 8  # that share the rows of a page in an operand: as many words of packed rows are best


class PageEmitter:
    """Writes the products of one kernel; `writer` knows its states and masks."""

    def __init__(self, writer: CodeEmitter) -> None:
        self.writer = writer

    def emit(self, e: Emitter, c: PageProduct, env: Env) -> Tile | None:
        """The product under an environment, or None where a shape does not suit it."""
        graph = e.graph
        heads = next(
            (graph.nodes[i].type.extent("head") for i in c.query if "head" in graph.nodes[i].type.names), None
        )
        head = None if heads is None else e.axis("head", heads.resolve(e.sizes))
        axes = order([a for n in graph.nodes[c.codes].type.names if n != c.dim for a in env[n].axes])
        wrong = head is not None and env["head"].text != head.index
        if wrong or whole_along(e, c) or not axes or axes[0].name != "page":
            return None
        shape = [axes[0].size, math.prod(a.size for a in axes[1:])]
        if shape[1] < LEAST_ROWS:
            return None
        real = graph.nodes[c.codes].type.extent(c.dim).resolve(e.sizes)
        made = any("page" in graph.nodes[i].type.names and not view(graph, i) for i in c.query)
        name = c.dim if made else lane_name(c.dim)  # lanes are rows to a product that makes the query's side
        unit = self._unit(e, c, shape[1])
        state = self.writer.states[graph.nodes[view(graph, c.codes)[-1]].attr["name"]]
        # Operands that are read as bytes have four channels a thread at a time, and eight threads' worth in a product.
        least = LEAST_ROWS if unit > 8 or state.dtype == "bf16" else LEAST_BYTES
        total = ""
        for start, size in _pieces(real, least):
            lanes = e.axis(name, size)
            text = lanes.index
            if unit:  # two channels half a piece apart are a pair
                text = f"({lanes.index} >> 1) + ({lanes.index} & 1) * {lanes.size // 2}"
            text = f"{start} + {text}" if start else text
            inside = None
            if start + lanes.size > real:
                inside = f"({text}) < {real}"
                text = f"tl.minimum({text}, {real - 1})"
            at = {**env, c.dim: e.shared(text, (lanes,)) if text != lanes.index else Tile(text, (lanes,))}
            if unit:
                left = self._packed(e, c, env, axes, shape, (start, lanes.size), unit)
            else:
                left = self._codes(e, c, at, [*axes, lanes], shape)
            right = self._query(e, c, at, [axes[0], *([] if head is None else [head]), lanes], inside)
            extra = f", {total}" if total else ""
            text = f'tl.dot({left}, tl.permute({right}, (0, 2, 1)){extra}, input_precision="tf32x3")'
            total = e.bind(text, (), True).text
        return self._result(e, c, env, head, axes, total)

    def _query(self, e: Emitter, c: PageProduct, env: Env, target: Sequence[Axis], inside: str | None) -> str:
        """The right operand, `[page, 2 heads, lanes]`: two numbers hold one of the query's."""
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in c.query]
        if c.by_channel:
            state, row, _ = self.writer.place(e, c.codes, {**env, **self._origin(e, c)})
            name = state.stored[-2][0]
            own = order([*row.axes, *env[name].axes])
            text, own = scale_text(state.name, state, e.sizes, row, [env[name]], self.writer.mask(own, True))
            factors.append(e.bind(text, own, True))
        axes = order([a for t in factors for a in t.axes])
        text = " * ".join(t.to(axes) for t in factors)
        if inside is not None:
            lane = Tile(f"({inside})", (target[-1],)).to(axes)
            text = f"tl.where({lane}, {text}, 0.0)"
        found = spread(_moved(e, e.bind(text, axes, True), target), target)
        if len(target) == 2:
            found = f"tl.expand_dims({found}, 1)"
        return e.bind(f"parts_of_pages({found}, OPERAND)", (), True).text

    @staticmethod
    def _origin(e: Emitter, c: PageProduct) -> dict[str, Tile]:
        """An index of the first row."""
        names = e.graph.nodes[c.codes].type.names
        return {n: Tile("0") for n in names if n not in ("page", c.dim)}

    def _codes(self, e: Emitter, c: PageProduct, env: Env, axes: Sequence[Axis], shape: list[int]) -> str:
        """The left operand, `[page, rows, lanes]`."""
        state, row, indices = self.writer.place(e, c.codes, env)
        lanes = axes[-1]
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.writer.mask(own, True))
        found = spread(_moved(e, e.bind(f"{text}.to(OPERAND)", own, True), axes), axes)
        return e.bind(f"tl.reshape({found}, {[*shape, lanes.size]})", (), True).text

    def _unit(self, e: Emitter, c: PageProduct, rows: int) -> int:
        """Bits of the rows of a channel that are read at once, 0 where rows are not packed in whole words."""
        graph = e.graph
        state = self.writer.states[graph.nodes[view(graph, c.codes)[-1]].attr["name"]]
        if state.dtype not in BITS or not c.by_channel:
            return 0
        best = min(32, max(8, rows * BITS[state.dtype] // THREADS))
        unit = 8 * state_column(state, e.sizes) or best
        return unit if rows * BITS[state.dtype] % unit == 0 else 0

    def _packed(
        self,
        e: Emitter,
        c: PageProduct,
        env: Env,
        axes: Sequence[Axis],
        shape: list[int],
        channels: tuple[int, int],
        unit: int,
    ) -> str:
        """The left operand where numbers are packed along rows."""
        start, size = channels
        lanes = e.axis(lane_name(c.dim), size // 2)
        real = e.graph.nodes[c.codes].type.extent(c.dim).resolve(e.sizes)
        sides: list[str] = []
        planes = self.writer.planes(e, c.codes)
        for plane in range(planes):
            for first in (start, start + size // 2):
                text = f"{first} + {lanes.index}" if first else lanes.index
                if first + size // 2 > real:
                    text = f"tl.minimum({text}, {real - 1})"
                state, row, indices = self.writer.place(e, c.codes, {**env, c.dim: Tile(text, (lanes,))})
                bits = BITS[state.dtype]
                words = e.axis(axes[1].name, shape[1] * bits // unit)
                place = [*indices[:-1], Tile(words.index, (words,))]
                own = order([*row.axes, *(a for t in place for a in t.axes)])
                mask = self.writer.mask(own, True)
                text, own = unit_text(state.name, state, e.sizes, row, place, mask, unit, plane)
                loaded = e.bind(text, own, True).text
                moved = tuple(own.index(a) for a in (axes[0], lanes, words))
                sides.append(loaded if moved == (0, 1, 2) else f"tl.permute({loaded}, {moved})")
        if planes == 1:
            return e.bind(f"unpack_rows({', '.join(sides)}, {bits}, {unit}, OPERAND)", (), True).text
        shown = ", ".join([*sides, *sides[-2:]][:6])
        return e.bind(f"unpack_row_planes({shown}, {planes}, {unit}, OPERAND)", (), True).text

    def _result(
        self, e: Emitter, c: PageProduct, env: Env, head: Axis | None, axes: Sequence[Axis], total: str
    ) -> Tile:
        """The sums with their axes in order, times scales and what does not depend on the channel."""
        heads = [] if head is None else [head]
        shape = [*(a.size for a in axes), *(a.size for a in heads), 2]
        text = f"tl.sum(tl.reshape({total}, {shape}), axis={len(shape) - 1})"
        full = (*axes, *heads)
        result = e.bind(text, full, True)
        target = order(full)
        if target != full:
            text = f"tl.permute({result.text}, {tuple(full.index(a) for a in target)})"
            result = e.bind(text, target, True)
        if not c.by_channel:
            state, row, indices = self.writer.place(e, c.codes, {**env, c.dim: Tile("0")})
            if state.dtype in SCALED:
                own = order([*row.axes, *(a for t in indices[:-1] for a in t.axes)])
                mask = self.writer.mask(own, True)
                text, own = scale_text(state.name, state, e.sizes, row, indices[:-1], mask)
                result = self.writer.times(e, result, e.bind(text, own, True))
        for i in c.rest:
            names = e.graph.nodes[i].type.names
            result = self.writer.times(e, result, e.emit(i, {n: t for n, t in env.items() if n in names}))
        return result


def _pieces(real: int, least: int) -> list[tuple[int, int]]:
    """`(start, lanes)` of all channels; the last lanes may be none."""
    found, start = [], 0
    while start < real:
        size = max(least, min(MOST_LANES, 1 << (real - start).bit_length() - 1))
        found.append((start, size))
        start += size
    return found


def _moved(e: Emitter, x: Tile, axes: Sequence[Axis]) -> Tile:
    """A tile with its axes in the order that they have in `axes`."""
    wanted = tuple(a for a in axes if a in x.axes)
    if wanted == x.axes:
        return x
    return e.bind(f"tl.permute({x.text}, {tuple(x.axes.index(a) for a in wanted)})", wanted, True)
