"""The text of products of a query with stored codes: see `code_product`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vortex_core.compiler.triton.code_product import CodeProduct, view, widest
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import code_text, scale_text, state_column, stored_shape, unit_text
from vortex_core.compiler.triton.packing import BITS, UNITS, Packing, packings
from vortex_core.compiler.triton.tile import LANE, Axis, Env, Tile, order, powers_of_two
from vortex_core.compiler.triton.whole_rows import LEAST_ROWS, MOST_HEADS, THREAD_ROWS, Columns, columns_of
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import PLANES, Extent

# Most channels of one product: more of them would hold more registers at a time, and none would be saved.
MAX_LANES = 128
COLUMNS = 8  # of the smallest product
LEAST = 16  # channels and rows that a product takes
LEAST_PAIRS = 4  # whose other factors are read together
RAISED = 136.0  # by which `unpack` gives numbers of four bits without subtracting


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
        others = [i for i in c.codes if i != first]
        by_page = all(set(graph.nodes[i].type.names) <= {"page", c.dim} for i in others)
        if found is not None and others:
            whole = all(self._nibbles(e, i, c.dim, found) for i in others)
            bytewise = found.unit == 8 or (not whole and found.per >= 2 * LEAST_PAIRS)
            low = 3 if bytewise else 2
            found = replace(found, low=low) if by_page and found.planes == 1 else None
        if found is not None and rows >= LEAST_ROWS and asked <= MOST_HEADS:
            total = self._by_columns(e, c, first, env, head, axes, found)
            return self._result(e, c, env, head, axes, total, double=False)
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

    # ---- columns -------------------------------------------------------------------------------------------

    def _by_columns(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        head: Axis | None,
        axes: tuple[Axis, ...],
        found: Columns,
    ) -> str:
        """The sums `[rows, heads]` of a state that lies by columns: see `whole_rows`. Two heads a product."""
        rows = math.prod(a.size for a in axes)
        raised = found.bits == 4 and len(c.codes) == 1
        columns = [self._column(e, c, first, env, axes, found, n, raised) for n in range(found.count)]
        real = e.graph.nodes[first].type.extent(c.dim).resolve(e.sizes)
        pieces = [
            self._piece(e, c.dim, found.lanes, partial(found.channel, n), (n + 1) * found.per, real, None)
            for n in range(found.count)
        ]
        shape = [rows // THREAD_ROWS, 2 * THREAD_ROWS]
        sums = []
        for start in range(0, 1 if head is None else head.real, 2):
            rights = [self._two_heads(e, c, head, start, piece, found.low) for piece in pieces]
            total = ""
            if raised:  # what the numbers are raised by, once a program
                every = " + ".join(f"{r}.to(tl.float32)" for parts in rights for r in parts)
                least = e.shared(f"{-RAISED} * tl.sum({every}, axis=1)", ()).text
                total = e.shared(f"tl.zeros({shape}, tl.float32) + {least}[None, :]", ()).text
            for left, parts in zip(columns, rights, strict=True):
                for right in parts:
                    extra = f", {total}" if total else ""
                    text = f'tl.dot({left}, tl.trans({right}){extra}, input_precision="tf32x3")'
                    total = e.bind(text, (), True).text
            sums.append(e.bind(f"short_rows({total}, {rows})", (), True).text)
        width = 1 if head is None else head.size
        if width == 1:
            return f"tl.sum({sums[0]}, axis=1)"
        while len(sums) * 2 < width:  # heads that are none
            sums.append(sums[-1])
        while len(sums) > 1:
            half = len(sums) // 2
            text = f"tl.permute(tl.join({{}}, {{}}), (0, 2, 1)), [{rows}, {width // half}])"
            sums = [
                e.bind(f"tl.reshape({text.format(a, b)}", (), True).text
                for a, b in zip(sums[::2], sums[1::2], strict=True)
            ]
        return sums[0]

    def _two_heads(
        self, e: Emitter, c: CodeProduct, head: Axis | None, start: int, piece: _Piece, low: int
    ) -> list[str]:
        """The right operands for two heads, `[8, lanes]`: one, or two numbers that hold a query's."""
        two = e.axis("two", 2)
        last = 0 if head is None else head.real - 1
        at = Tile(
            f"tl.minimum({start} + {two.index}, {last})" if start + 1 > last else f"{start} + {two.index}",
            (two,),
        )
        env = {c.dim: piece.channel, "head": at}
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in c.query]
        axes = order([a for t in factors for a in t.axes])
        target = [two, piece.lanes]
        text = e.shared(_spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target).text
        inside = [f"{piece.inside}[None, :]"] if piece.inside is not None else []
        inside += [f"({two.index} == 0)[:, None]"] if last == 0 else []
        if inside:
            text = f"tl.where({' & '.join(inside)}, {text}, 0.0)"
        text = e.shared(f"long_query({text}, {piece.lanes.size}, {low})", ()).text
        high = e.shared(f"{text}.to(OPERAND)", ()).text
        if c.exact:
            return [high]
        return [high, e.shared(f"({text} - {high}.to(tl.float32)).to(OPERAND)", ()).text]

    def _column(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        axes: tuple[Axis, ...],
        found: Columns,
        n: int,
        raised: bool,
    ) -> str:
        """A column of codes as the left operand."""
        rows = math.prod(a.size for a in axes)
        state, row, indices = self._place(e, first, {**env, c.dim: Tile(str(found.first + n))}, c.dim)
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        left = ""
        for plane in range(found.planes):
            text, own = unit_text(
                state.name, state, e.sizes, row, indices, self.mask(own, True), found.unit, plane
            )
            loaded = e.bind(text, own, True)
            if len(c.codes) > 1:
                assert found.planes == 1 and own == tuple(axes)
                return self._times_pages(e, c, first, env, axes, found, n, loaded)
            words = _spread(loaded, axes)
            flat = f"unpack(tl.reshape({words}, [{rows}, 1]), {found.bits}, {found.unit}, OPERAND, {raised})"
            flat = e.bind(f"tl.reshape({flat}, [{rows}, {found.per}])", (), True).text
            left = f"{left} + {flat} * {2**plane}.0" if left else flat
        return e.bind(f"long_rows({left}, {rows}, {found.per}, {found.low})", (), True).text

    def _times_pages(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        axes: tuple[Axis, ...],
        found: Columns,
        n: int,
        words: Tile,
    ) -> str:
        """A column of codes times codes that all rows of a page share, pair by pair."""
        rows = math.prod(a.size for a in axes)
        real = e.graph.nodes[first].type.extent(c.dim).resolve(e.sizes)
        x = e.bind(f"halves({words.text}, {found.unit})", words.axes, True)
        pairs = []
        others = [i for i in c.codes if i != first]
        for at in range(found.per // 2):
            factors = [self._page_pair(e, i, c.dim, env, found, n * found.per + at, real) for i in others]
            shown = " * ".join(t.to((*words.axes, t.axes[-1])) for t in factors)
            text = f"pair_times({x.text}, {shown}, {at * found.bits}, {found.bits}, OPERAND)"
            pairs.append(e.bind(text, (), True).text)
        while len(pairs) > 1:
            pairs = [
                e.bind(f"tl.join({a}, {b})", (), True).text
                for a, b in zip(pairs[::2], pairs[1::2], strict=True)
            ]
        left = e.bind(f"tl.reshape({pairs[0]}, [{rows}, {found.per}])", (), True).text
        return e.bind(f"long_rows({left}, {rows}, {found.per}, {found.low})", (), True).text

    def _nibbles(self, e: Emitter, i: int, dim: str, found: Columns) -> bool:
        """Whether four channels of a page's codes can be read as 16 bits wherever a column has four in a row."""
        read = self._packings(e, dim, i, 4, (16,))
        return bool(read) and read[0].bits == 4 and found.per >= 2 * LEAST_PAIRS

    def _page_pair(
        self, e: Emitter, i: int, dim: str, env: Env, found: Columns, channel: int, real: int
    ) -> Tile:
        """A page's codes of a channel and of the one half a column further, `[page, 2]`."""
        channels = [min(channel + half * found.per // 2, real - 1) for half in (0, 1)]
        two = Axis(_lane(dim), 2)
        if not self._nibbles(e, i, dim, found):
            low, high = (self._one(e, i, dim, env, at) for at in channels)
            return Tile(e.bind(f"tl.join({low.text}, {high.text})", (), True).text, (*low.axes, two))
        (read,) = self._packings(e, dim, i, 4, (16,))
        sides = []
        for at in channels:
            state, row, indices = self._place(e, i, {**env, dim: Tile(str(read.offset + at // 4))}, dim)
            text, axes = unit_text(state.name, state, e.sizes, row, indices, self.mask(row.axes, True), 16)
            sides.append(self._once(e, f"{text}.to(tl.int32)", axes))
        word = self._once(e, f"({sides[0].text} & 65535) | ({sides[1].text} << 16)", axes)
        return self._once(e, f"pair({word.text}, {channel % 4 * 4}, 4, OPERAND)", (*axes, two))

    @staticmethod
    def _once(e: Emitter, text: str, axes: Sequence[Axis]) -> Tile:
        """A statement of the loop, or the variable that holds the same already."""
        found = next(
            (line.split(" = ", 1)[0] for line in e.inner or e.outer if line.endswith(f" = {text}")), None
        )
        return e.bind(text, axes, True) if found is None else Tile(found, tuple(axes))

    def _one(self, e: Emitter, i: int, dim: str, env: Env, channel: int) -> Tile:
        """One channel of a page's codes."""
        state, row, indices = self._place(e, i, {**env, dim: Tile(str(channel))})
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.mask(own, True))
        return self._once(e, f"({text}).to(OPERAND)", own)

    # ---- channels ------------------------------------------------------------------------------------------

    def _pieces(self, e: Emitter, dim: str, first: int, real: int) -> list[_Piece]:
        """The channels in pieces that fit the factor with the most rows."""
        packed = self._packings(e, dim, first, real)
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
        lanes = e.axis(_lane(dim), size)
        text = channel(lanes.index)
        if end > real:
            bound = e.shared(f"tl.minimum({text}, {real - 1})", (lanes,))
            return _Piece(lanes, bound, f"(({text}) < {real})", packing)
        found = Tile(text, (lanes,)) if text == lanes.index else e.shared(text, (lanes,))
        return _Piece(lanes, found, None, packing)

    def _packings(
        self, e: Emitter, dim: str, first: int, real: int, units: tuple[int, ...] = UNITS
    ) -> list[Packing]:
        """How the packed numbers of a view are taken; none where it is not packed along `dim` in whole units."""
        graph = e.graph
        chain = view(graph, first)
        state = self.states[graph.nodes[chain[-1]].attr["name"]]
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
        state, row, indices = self._place(e, i, {**env, dim: piece.channel})
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.mask(own, True))
        found = e.bind(f"{text}.to(OPERAND)", own, True)
        return _spread(found, [*axes, piece.lanes])

    def _planes(self, e: Emitter, i: int) -> int:
        """Planes of bits of the state behind a view; 1 where it has none."""
        return PLANES.get(self.states[e.graph.nodes[view(e.graph, i)[-1]].attr["name"]].dtype, 1)

    def _unpacked(
        self, e: Emitter, i: int, dim: str, env: Env, axes: Sequence[Axis], p: Packing, plane: int = 0
    ) -> str:
        """The numbers in the units of a piece, of one plane."""
        units = e.axis(_lane(dim), p.units)
        first = p.offset + p.start
        lane = Tile(units.index if not first else f"{first} + {units.index}", (units,))
        state, row, indices = self._place(e, i, {**env, dim: lane}, dim)
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        mask = self.mask(own, True)
        if p.real < p.units:
            inside = Tile(f"({units.index} < {p.real})", (units,)).to(own)
            mask = inside if mask is None else f"{mask} & {inside}"
        text, own = unit_text(state.name, state, e.sizes, row, indices, mask, p.unit, plane)
        words = _spread(e.bind(text, own, True), [*axes, units])
        rows = math.prod(a.size for a in axes)
        return f"unpack(tl.reshape({words}, {[rows, p.units]}), {p.bits}, {p.unit}, OPERAND)"

    def _place(self, e: Emitter, i: int, env: Env, packed: str = "") -> tuple[StateDecl, Tile, list[Tile]]:
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
        state = self.states[graph.nodes[chain[-1]].attr["name"]]
        return state, Tile("page_row", env["page"].axes), [at[n] for n, _ in state.stored]

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
        found = e.shared(_spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target)
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
            state, row, indices = self._place(e, i, {**env, c.dim: Tile("0")})
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


def _lane(dim: str) -> str:
    """Name of the axis along which a dimension is summed."""
    return "dim" if dim == "dim" else LANE


def _spread(x: Tile, axes: Sequence[Axis]) -> str:
    """A tile with all of some axes, in their order."""
    if tuple(axes) == x.axes:
        return x.text
    if not x.axes:
        return f"tl.full({[a.size for a in axes]}, {x.text}, tl.float32)"
    assert [a for a in axes if a in x.axes] == list(x.axes), (x, axes)
    shape = [a.size for a in axes]
    return f"tl.broadcast_to({x.to(axes)}, {shape})"
