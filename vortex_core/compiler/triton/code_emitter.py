"""The text of products of a query with stored codes: see `code_product`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vortex_core.compiler.triton.code_product import CodeProduct, view, widest
from vortex_core.compiler.triton.code_view import MAX_LANES, lane_name, place, spread, unit_packings
from vortex_core.compiler.triton.column_product import LEAST_ROWS, MOST_HEADS, ColumnProduct
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import code_text, scale_text, unit_text
from vortex_core.compiler.triton.packing import Packing
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order, powers_of_two
from vortex_core.compiler.triton.whole_rows import columns_of
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import PLANES

COLUMNS = 8  # of the smallest product
LEAST = 16  # channels and rows that a product takes


@dataclass(frozen=True)
class _Piece:
    """Some channels.

    Attributes:
        lanes: their axis; named `dim`, whatever the summed dimension is called, for it comes last.
        channel: which one a lane is; padding has the last.
        inside: condition on real lanes, None if all are.
        packing: how the packed factor is read.
    """

    lanes: Axis
    channel: Tile
    inside: str | None
    packing: Packing | None


class CodeEmitter:
    """Writes the products of one kernel.

    Args:
        states: by name.
        mask: condition text on real lanes of axes.
    """

    def __init__(
        self, states: Mapping[str, StateDecl], mask: Callable[[Sequence[Axis], bool], str | None]
    ) -> None:
        self.states, self.mask = states, mask

    def emit(self, e: Emitter, c: CodeProduct, env: Env) -> Tile | None:
        """The product under an environment, or None where a shape does not suit it."""
        graph = e.graph
        real = graph.nodes[c.codes[0]].type.extent(c.dim).resolve(e.sizes)
        if any(e.needs_whole(i, c.dim) for i in c.query):
            return None
        heads = next(
            (graph.nodes[i].type.extent("head") for i in c.query if "head" in graph.nodes[i].type.names), None
        )
        head = None if heads is None else e.axis("head", heads.resolve(e.sizes))
        if head is not None and env["head"].text != head.index:
            return None
        names = {n for i in c.codes for n in graph.nodes[i].type.names} - {c.dim}
        axes = order([a for n in names for a in env[n].axes])
        rows = math.prod(a.size for a in axes)
        first = widest(graph, c)
        found = columns_of(graph, c, self.states, e.sizes, first)
        asked = 1 if heads is None else heads.resolve(e.sizes)
        if found is not None and rows >= LEAST_ROWS and asked <= MOST_HEADS:
            sums = ColumnProduct(e, self.states, self.mask, c, env, head, axes, found).emit()
            if sums is not None:
                return self._result(e, c, env, head, axes, sums, double=False)
        if rows < LEAST or real < LEAST:
            return None
        total = ""
        for piece in self._pieces(e, c.dim, first, real):
            left = self._codes(e, c, first, env, axes, piece)
            for right in self._query(e, c, head, piece):
                extra = f", {total}" if total else ""
                text = f'tl.dot({left}, tl.trans({right}){extra}, input_precision="tf32x3")'
                total = e.bind(text, (), True).text
        return self._result(e, c, env, head, axes, total, double=self._side_by_side(c, head))

    # ---- channels ------------------------------------------------------------------------------------------

    def _pieces(self, e: Emitter, dim: str, first: int, real: int) -> list[_Piece]:
        """The channels in pieces that fit the factor with the most rows."""
        packed = unit_packings(e, self.states, dim, first, real)
        if packed:
            return [
                self._piece(e, dim, p.lanes, p.channel, (p.start + p.units) * p.per, real, p) for p in packed
            ]
        found = []
        for start, size in powers_of_two(real, MAX_LANES):
            size = max(size, LEAST)

            def channel(lane: str, start: int = start) -> str:
                return f"{start} + {lane}" if start else lane

            found.append(self._piece(e, dim, size, channel, start + size, real, None))
        return found

    def _piece(
        self,
        e: Emitter,
        dim: str,
        size: int,
        channel: Callable[[str], str],
        end: int,
        real: int,
        packing: Packing | None,
    ) -> _Piece:
        lanes = e.axis(lane_name(dim), size)
        text = channel(lanes.index)
        if end > real:
            bound = e.shared(f"tl.minimum({text}, {real - 1})", (lanes,))
            return _Piece(lanes, bound, f"(({text}) < {real})", packing)
        found = Tile(text, (lanes,)) if text == lanes.index else e.shared(text, (lanes,))
        return _Piece(lanes, found, None, packing)

    # ---- operands ------------------------------------------------------------------------------------------

    def _codes(
        self, e: Emitter, c: CodeProduct, first: int, env: Env, axes: Sequence[Axis], piece: _Piece
    ) -> str:
        """The left operand, `[rows, lanes]`."""
        rows = math.prod(a.size for a in axes)
        shape = [rows, piece.lanes.size]
        if piece.packing is None:
            left = f"tl.reshape({self._plain(e, first, c.dim, env, axes, piece)}, {shape})"
        else:
            left = piece.packing.operand(self._unpacked(e, first, c.dim, env, axes, piece.packing), rows)
            for plane in range(1, self._planes(e, first)):
                more = self._unpacked(e, first, c.dim, env, axes, piece.packing, plane)
                left = f"{e.bind(left, (), True).text} + {piece.packing.operand(more, rows)} * {2**plane}.0"
        left = e.bind(left, (), True).text
        for i in c.codes:
            if i != first:
                more = f"tl.reshape({self._plain(e, i, c.dim, env, axes, piece)}, {shape})"
                left = e.bind(f"{left} * {more}", (), True).text
        return left

    def _plain(self, e: Emitter, i: int, dim: str, env: Env, axes: Sequence[Axis], piece: _Piece) -> str:
        """One number a lane, with all axes."""
        state, row, indices = place(e, self.states, i, {**env, dim: piece.channel})
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.mask(own, True))
        found = e.bind(f"{text}.to(OPERAND)", own, True)
        return spread(found, [*axes, piece.lanes])

    def _planes(self, e: Emitter, i: int) -> int:
        """Planes of bits of the state behind a view; 1 where it has none."""
        return PLANES.get(self.states[e.graph.nodes[view(e.graph, i)[-1]].attr["name"]].dtype, 1)

    def _unpacked(
        self, e: Emitter, i: int, dim: str, env: Env, axes: Sequence[Axis], p: Packing, plane: int = 0
    ) -> str:
        """The numbers in the units of a piece, of one plane."""
        units = e.axis(lane_name(dim), p.units)
        first = p.offset + p.start
        lane = Tile(units.index if not first else f"{first} + {units.index}", (units,))
        state, row, indices = place(e, self.states, i, {**env, dim: lane}, dim)
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        mask = self.mask(own, True)
        if p.real < p.units:
            inside = Tile(f"({units.index} < {p.real})", (units,)).to(own)
            mask = inside if mask is None else f"{mask} & {inside}"
        text, own = unit_text(state.name, state, e.sizes, row, indices, mask, p.unit, plane)
        words = spread(e.bind(text, own, True), [*axes, units])
        rows = math.prod(a.size for a in axes)
        return f"unpack(tl.reshape({words}, {[rows, p.units]}), {p.bits}, {p.unit}, OPERAND)"

    @staticmethod
    def _side_by_side(c: CodeProduct, head: Axis | None) -> bool:
        """Whether the two numbers that hold a query's stand in the columns of one product: eight are free, and with
        more Triton takes instructions that want the left operand in shared memory."""
        return not c.exact and 2 * (1 if head is None else head.size) <= COLUMNS

    def _query(self, e: Emitter, c: CodeProduct, head: Axis | None, piece: _Piece) -> list[str]:
        """The right operands, `[heads, lanes]` each, or one with twice as many rows: two numbers hold a query's."""
        env = {c.dim: piece.channel, **({} if head is None else {"head": Tile(head.index, (head,))})}
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in c.query]
        axes = order([a for t in factors for a in t.axes])
        target = [piece.lanes] if head is None else [head, piece.lanes]
        found = e.shared(spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target)
        text = found.text if head is not None else f"{found.text}[None, :]"
        if piece.inside is not None:
            text = f"tl.where({piece.inside}[None, :], {text}, 0.0)"
        if self._side_by_side(c, head):
            return [e.shared(f"two_parts({text}, OPERAND)", ()).text]
        high = e.shared(f"({text}).to(OPERAND)", ()).text
        return (
            [high] if c.exact else [high, e.shared(f"({text} - {high}.to(tl.float32)).to(OPERAND)", ()).text]
        )

    # ---- result --------------------------------------------------------------------------------------------

    def _result(
        self,
        e: Emitter,
        c: CodeProduct,
        env: Env,
        head: Axis | None,
        axes: tuple[Axis, ...],
        total: str,
        *,
        double: bool,
    ) -> Tile:
        """The sums with their axes in order, times scales and what does not depend on the channel."""
        heads = 1 if head is None else head.size
        shape = [*(a.size for a in axes), heads, *([2] if double else [])]
        found = e.bind(f"tl.reshape({total}, {shape})", (), True).text
        if double:
            found = e.bind(f"tl.sum({found}, axis={len(axes) + 1})", (), True).text
        full = (*axes, *(() if head is None else (head,)))
        if head is None:
            found = e.bind(f"tl.reshape({found}, {[a.size for a in axes]})", (), True).text
        target = order(full)
        if target != full:
            found = e.bind(f"tl.permute({found}, {tuple(full.index(a) for a in target)})", (), True).text
        result = Tile(found, target)
        for i in c.codes:
            state, row, indices = place(e, self.states, i, {**env, c.dim: Tile("0")})
            if state.dtype in SCALED:
                own = order([*row.axes, *(a for t in indices[:-1] for a in t.axes)])
                text, own = scale_text(state.name, state, e.sizes, row, indices[:-1], self.mask(own, True))
                result = self._times(e, result, e.bind(text, own, True))
        for i in c.rest:
            names = e.graph.nodes[i].type.names
            result = self._times(e, result, e.emit(i, {n: t for n, t in env.items() if n in names}))
        return result

    @staticmethod
    def _times(e: Emitter, a: Tile, b: Tile) -> Tile:
        axes = order([*a.axes, *b.axes])
        return e.bind(f"{a.to(axes)} * {b.to(axes)}", axes, True)
