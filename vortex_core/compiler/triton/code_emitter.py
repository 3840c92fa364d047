"""The text of products of a query with stored codes: see `code_product`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vortex_core.compiler.triton.code_product import CodeProduct, Total, view, widest
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import (
    code_text,
    flat_bytes,
    flat_indices,
    flat_text,
    scale_text,
    state_column,
    stored_shape,
    unit_text,
)
from vortex_core.compiler.triton.packing import BITS, Packing, packings
from vortex_core.compiler.triton.tile import LANE, Axis, Env, Tile, order, powers_of_two
from vortex_core.compiler.triton.whole_rows import LEAST_ROWS, MOST_HEADS, THREAD_ROWS, Columns, columns_of
from vortex_core.ir.graph import Graph
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import PLANES, Extent

# Most channels of one product: more of them would hold more registers at a time, and none would be saved.
MAX_LANES = 128
COLUMNS = 8  # of the smallest product
LEAST = 16  # channels and rows that a product takes
RAISED = 136.0  # by which `unpack` gives numbers of four bits without subtracting


@dataclass(frozen=True)
class _Piece:
    """Some channels.

    Attributes:
        lanes: their axis; named `dim`, whatever the summed dimension is called, for it comes last.
        at: which one a lane is, an index of each summed dimension; padding has the last.
        inside: condition on real lanes, None if all are.
        packing: how the packed factor is read.
    """

    lanes: Axis
    at: Mapping[str, Tile]
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
        at = self._axes(e, c, env)
        if at is None:
            return None
        head, axes = at
        real = c.channels(graph, e.sizes)
        rows = math.prod(a.size for a in axes)
        first = widest(graph, c)
        found = columns_of(graph, c, self.states, e.sizes, first) if len(c.dims) == 1 else None
        asked = 1 if head is None else head.real
        others = [i for i in c.codes if i != first]
        by_page = all(set(graph.nodes[i].type.names) <= {"page", c.dim} for i in others)
        if found is not None and others:
            narrow = found.column == 8 or (
                found.per >= 8 and any(self._state(graph, i).dtype != "bf16" for i in others)
            )
            found = replace(found, low=3 if narrow else 2) if by_page and found.planes == 1 else None
        if found is not None and rows >= LEAST_ROWS and asked <= MOST_HEADS:
            total = self._by_columns(e, c, first, env, head, axes, found)
            return self._result(e, c, env, head, axes, total, double=False)
        if rows < LEAST or real < LEAST:
            return None
        if self._suit_bytes(e, [c], head):
            total = self._in_bytes(e, [c], env, head, axes)
            return self._result(e, c, env, head, axes, total, double=False)
        if len(c.dims) == 1:
            pieces = self._pieces(e, c, first, real)
        else:
            packed = self._flat_packings(e, c, first)
            pieces = [self._flat_piece(e, c, first, p, p.channel) for p in packed]
        if not pieces:
            return None
        total = ""
        for piece in pieces:
            left = self._codes(e, c, first, env, axes, piece)
            for right in self._query(e, c, head, piece):
                extra = f", {total}" if total else ""
                text = f'tl.dot({left}, tl.trans({right}){extra}, input_precision="tf32x3")'
                total = e.bind(text, (), True).text
        return self._result(e, c, env, head, axes, total, double=self._side_by_side(c, head))

    def emit_total(self, e: Emitter, t: Total, env: Env) -> Tile | None:
        """A sum of products, which is added up as it is multiplied, or None where a shape does not suit that."""
        at = self._axes(e, t.products[0], env)
        if (
            at is None
            or math.prod(a.size for a in at[1]) < LEAST
            or not self._suit_bytes(e, t.products, at[0])
        ):
            return None
        total = self._in_bytes(e, t.products, env, *at)
        result = self._result(e, t.products[0], env, *at, total, double=False)
        for i in t.others:
            other = e.at(i, env)
            axes = order([*result.axes, *other.axes])
            result = e.bind(f"{result.to(axes)} + {other.to(axes)}", axes, True)
        return result

    @staticmethod
    def _axes(e: Emitter, c: CodeProduct, env: Env) -> tuple[Axis | None, tuple[Axis, ...]] | None:
        """The axis of heads, if there is one, and those of rows; None where they are asked for otherwise."""
        graph = e.graph
        if any(e.needs_whole(i, d) for i in c.query for d in c.dims):
            return None
        heads = next(
            (graph.nodes[i].type.extent("head") for i in c.query if "head" in graph.nodes[i].type.names), None
        )
        head = None if heads is None else e.axis("head", heads.resolve(e.sizes))
        if head is not None and env["head"].text != head.index:
            return None
        names = {n for i in c.codes for n in graph.nodes[i].type.names} - set(c.dims)
        return head, order([a for n in names for a in env[n].axes])

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
        raised = len(c.codes) == 1 and found.planes == 1
        groups = found.groups()
        columns = [self._columns(e, c, first, env, axes, found, group, raised) for group in groups]
        real = e.graph.nodes[first].type.extent(c.dim).resolve(e.sizes)
        pieces = [
            self._piece(
                e, c.dim, found.lanes(n), partial(found.channel, at, n), (at + n) * found.per, real, None
            )
            for at, n in groups
        ]
        shape = [rows // THREAD_ROWS, 2 * THREAD_ROWS]
        sums = []
        for start in range(0, 1 if head is None else head.real, 2):
            steps = {}
            if raised and found.bits == 1:
                steps = {n: self._steps(e, c, found, n) for _, n in groups}
            rights = [
                self._two_heads(e, c, head, start, piece, found.low, steps.get(n, ""))
                for piece, (_, n) in zip(pieces, groups, strict=True)
            ]
            total = ""
            if raised:  # what the numbers are raised by, once a program
                same: dict[int, list[str]] = {}
                for (_, n), parts in zip(groups, rights, strict=True):
                    same.setdefault(n, []).extend(f"{r}.to(tl.float32)" for r in parts)
                by = {n: f" * (1.0 + 1.0 / {steps[n]})[None, :]" if steps else "" for n in same}
                every = " + ".join(f"tl.sum(({' + '.join(r)}){by[n]}, axis=1)" for n, r in same.items())
                least = e.shared(f"{-1.0 if steps else -RAISED} * ({every})", ()).text
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

    @staticmethod
    def _steps(e: Emitter, c: CodeProduct, found: Columns, columns: int) -> str:
        """By what the query at each lane of some columns is multiplied, as a variable."""
        lanes = e.axis(lane_name(c.dim), found.lanes(columns))
        return e.shared(found.step(columns, lanes.index), (lanes,)).text

    def _two_heads(
        self, e: Emitter, c: CodeProduct, head: Axis | None, start: int, piece: _Piece, low: int, step: str
    ) -> list[str]:
        """The right operands for two heads, `[8, lanes]`: one, or two numbers that hold a query's times a step."""
        two = e.axis("two", 2)
        last = 0 if head is None else head.real - 1
        at = Tile(
            f"tl.minimum({start} + {two.index}, {last})" if start + 1 > last else f"{start} + {two.index}",
            (two,),
        )
        env = {**piece.at, "head": at}
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in c.query]
        axes = order([a for t in factors for a in t.axes])
        target = [two, piece.lanes]
        text = e.shared(spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target).text
        inside = [f"{piece.inside}[None, :]"] if piece.inside is not None else []
        inside += [f"({two.index} == 0)[:, None]"] if last == 0 else []
        if inside:
            text = f"tl.where({' & '.join(inside)}, {text}, 0.0)"
        text = f"({text}) * {step}[None, :]" if step else text
        text = e.shared(f"long_query({text}, {piece.lanes.size}, {low})", ()).text
        high = e.shared(f"{text}.to(OPERAND)", ()).text
        if c.exact:
            return [high]
        return [high, e.shared(f"({text} - {high}.to(tl.float32)).to(OPERAND)", ()).text]

    def _columns(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        axes: tuple[Axis, ...],
        found: Columns,
        group: tuple[int, int],
        raised: bool,
    ) -> str:
        """Some columns of codes as the left operand."""
        rows = math.prod(a.size for a in axes)
        start, count = group
        read = f"{found.bits}, {found.unit}, OPERAND"
        planes = [
            [self._word(e, c, first, env, found, start + n, plane) for n in range(count)]
            for plane in range(found.planes)
        ]
        if len(c.codes) > 1:
            assert found.planes == 1 and all(x.axes == axes for x in planes[0])
            pages = axes[0].size
            flat = f"tl.reshape({_joined([x.text for x in planes[0]])}, {[pages, rows // pages, count]})"
            text = f"unpack_times({flat}, {self._page_factors(e, c, first, env, found, group)}, {read})"
        else:
            words = [_joined([spread(x, axes) for x in loaded]) for loaded in planes]
            words = [f"tl.reshape({w}, {[rows, count]})" for w in words]
            text = f"unpack_columns({words[0]}, {read}, {raised})"
            if found.planes > 1:
                shown = ", ".join([*words, words[-1]][:3])
                text = f"unpack_planes({shown}, {found.planes}, {found.unit}, OPERAND)"
        left = e.bind(text, (), True).text
        return e.bind(f"long_rows({left}, {rows}, {found.per * count}, {found.low})", (), True).text

    def _word(
        self, e: Emitter, c: CodeProduct, first: int, env: Env, found: Columns, word: int, plane: int
    ) -> Tile:
        """A word of each row, of one column or of several."""
        parts = []
        for at in found.parts(word):
            factors = []
            for i in (first, *c.signs):
                state, row, indices = self.place(e, i, {**env, c.dim: Tile(str(at))}, c.dim)
                own = order([*row.axes, *(a for t in indices for a in t.axes)])
                mask = self.mask(own, True)
                text, own = unit_text(state.name, state, e.sizes, row, indices, mask, found.column, plane)
                factors.append(self._once(e, text, own))
            parts.append(self._signed(e, factors))
        if found.unit == found.column:
            return parts[0]
        least = 2**found.column - 1
        shown = [f"(({x.text}.to(tl.int32) & {least}) << {n * found.column})" for n, x in enumerate(parts)]
        return e.bind(" | ".join(shown), parts[0].axes, True)

    def _page_factors(
        self, e: Emitter, c: CodeProduct, first: int, env: Env, found: Columns, group: tuple[int, int]
    ) -> str:
        """The codes that all rows of a page share at the channels of some columns."""
        start, count = group
        real = e.graph.nodes[first].type.extent(c.dim).resolve(e.sizes)
        lane = e.axis(lane_name(c.dim), found.per * count)
        at = found.pair(start, count, lane.index)
        if (start + count) * found.per > real:
            at = f"tl.minimum({at}, {real - 1})"
        channel = e.shared(at, (lane,))
        return " * ".join(
            self._shared_codes(e, i, {**env, c.dim: channel}).text for i in c.codes if i != first
        )

    def _shared_codes(self, e: Emitter, i: int, env: Env) -> Tile:
        """Codes that all rows of a page share, `[page, lanes]`."""
        state, row, indices = self.place(e, i, env)
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.mask(own, True))
        return self._once(e, f"({text}).to(OPERAND)", own)

    @staticmethod
    def _once(e: Emitter, text: str, axes: Sequence[Axis]) -> Tile:
        """A variable for what is read, the one that has it already where there is one."""
        found = next(
            (line.split(" = ", 1)[0] for line in e.inner or e.outer if line.endswith(f" = {text}")), None
        )
        return e.bind(text, axes, True) if found is None else Tile(found, tuple(axes))

    @staticmethod
    def _signed(e: Emitter, words: Sequence[Tile]) -> Tile:
        """Words of the products of signs: a bit says that a sign is not negative."""
        found = words[0]
        for word in words[1:]:
            found = e.bind(f"~({found.text} ^ {word.text}).to(tl.int32)", found.axes, True)
        return found

    # ---- channels ------------------------------------------------------------------------------------------

    def _pieces(self, e: Emitter, c: CodeProduct, first: int, real: int) -> list[_Piece]:
        """The channels in pieces that fit the factor with the most rows.

        Numbers that are multiplied by other codes before the product are read one by one: in the order in which units
        are unpacked the machine code of such a product came out wrong.
        """
        dim = c.dim
        packed = self._packings(e, dim, first, real) if len(c.codes) == 1 else []
        if packed:
            return [
                self._piece(e, dim, p.lanes, p.channel, (p.start + p.units) * p.per, real, p) for p in packed
            ]
        found = []
        for start, size in powers_of_two(real, MAX_LANES):
            # What is left for less than a product takes is one piece with lanes to spare, however many powers of two it is.
            rest = size < LEAST
            size = max(size, LEAST)

            def channel(lane: str, start: int = start) -> str:
                return f"{start} + {lane}" if start else lane

            found.append(self._piece(e, dim, size, channel, start + size, real, None))
            if rest:
                break
        return found

    def _flat_packings(self, e: Emitter, c: CodeProduct, first: int) -> list[Packing]:
        """How a row of signs along several dimensions is taken: its bits as they lie."""
        width = flat_bytes(self._state(e.graph, first), e.sizes, len(c.dims))
        return packings(1, 8 * width, width, 0, MAX_LANES)

    def _flat_piece(
        self, e: Emitter, c: CodeProduct, first: int, p: Packing, channel: Callable[[str], str]
    ) -> _Piece:
        """A piece of such a row; `channel` says which bit of it a lane is."""
        state, count = self._state(e.graph, first), len(c.dims)
        bits = 8 * flat_bytes(state, e.sizes, count)
        last = state.stored[-1][1].resolve(e.sizes)
        piece = self._piece(e, c.dim, p.lanes, channel, (p.start + p.units) * p.per, bits, p)
        texts = flat_indices(state, e.sizes, count, piece.at[c.dim].text)
        inside = [] if piece.inside is None else [piece.inside]
        if 8 * stored_shape(state, e.sizes)[-1] > last:
            inside.append(f"({texts[-1]} < {last})")
            texts[-1] = f"tl.minimum({texts[-1]}, {last - 1})"
        at = {d: e.shared(text, (piece.lanes,)) for d, text in zip(c.dims, texts, strict=True)}
        condition = f"({' & '.join(inside)})" if len(inside) > 1 else next(iter(inside), None)
        return replace(piece, at=at, inside=condition)

    def _suit_bytes(self, e: Emitter, products: Sequence[CodeProduct], head: Axis | None) -> bool:
        """Whether products run on bytes: few values of the query, in no more columns than are free."""
        return (head is None or head.size <= MOST_HEADS) and all(
            c.step and all((p.unit, p.units) == (32, 4) for p in self._flat_packings(e, c, c.codes[0]))
            for c in products
        )

    def _in_bytes(
        self,
        e: Emitter,
        products: Sequence[CodeProduct],
        env: Env,
        head: Axis | None,
        axes: Sequence[Axis],
    ) -> str:
        """The sums `[rows, heads]` for queries of few values: both sides are bytes, which is exact, and a number of the
        state is not more than a bit. See `kernels.unpack.unpack_bytes`."""
        rows, step = math.prod(a.size for a in axes), products[0].step
        parts = [head]
        if head is not None and head.size > COLUMNS:
            parts = [e.axis("EIGHT", COLUMNS)] * (head.size // COLUMNS)
        totals = [""] * len(parts)
        less: list[list[str]] = [[] for _ in parts]
        for c in products:
            first = c.codes[0]
            for p in self._flat_packings(e, c, first):

                def channel(lane: str, start: int = p.start * p.per) -> str:
                    at = f"(({lane} >> 2) & 3) * 32 + ({lane} & 3) * 8 + ({lane} >> 4)"
                    return f"{start} + {at}" if start else at

                piece = self._flat_piece(e, c, first, p, channel)
                words = e.bind(self._words(e, c, first, env, axes, p), (), True).text
                left = e.bind(f"unpack_bytes({words})", (), True).text
                weight = f"({1.0 / step} * (8 >> (({piece.lanes.index} >> 4) & 3)).to(tl.float32))[None, :]"
                for n, part in enumerate(parts):
                    number = self._numbers(e, c, part, piece, n * COLUMNS, 0 if head is None else head.real)
                    if piece.inside is not None or head is None:
                        number = e.shared(number, ()).text
                    right = e.shared(f"({number} * {weight}).to(tl.int8)", ()).text
                    less[n].append(number)
                    extra = f", {totals[n]}" if totals[n] else ""
                    text = f"tl.dot({left}, tl.trans({right}){extra}, out_dtype=tl.int32)"
                    totals[n] = e.bind(text, (), True).text
        found = []
        for part, total, numbers in zip(parts, totals, less, strict=True):
            every = e.shared(f"tl.sum({' + '.join(numbers)}, axis=1)", ()).text
            shape = [rows, 1 if part is None else part.size]
            # A sign is twice its bit, less 1.
            text = f"tl.reshape({total}, {shape}).to(tl.float32) * {step / 4} - {every}[None, :]"
            found.append(e.bind(text, (), True).text)
        if len(found) == 1:
            return found[0]
        text = f"tl.permute(tl.join({found[0]}, {found[1]}), (0, 2, 1))"
        return e.bind(f"tl.reshape({text}, {[rows, 2 * COLUMNS]})", (), True).text

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
            return _Piece(lanes, {dim: bound}, f"(({text}) < {real})", packing)
        found = Tile(text, (lanes,)) if text == lanes.index else e.shared(text, (lanes,))
        return _Piece(lanes, {dim: found}, None, packing)

    def _packings(self, e: Emitter, dim: str, first: int, real: int) -> list[Packing]:
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
        return packings(BITS[state.dtype], real, width, start, MAX_LANES)

    # ---- operands ------------------------------------------------------------------------------------------

    def _codes(
        self, e: Emitter, c: CodeProduct, first: int, env: Env, axes: Sequence[Axis], piece: _Piece
    ) -> str:
        """The left operand, `[rows, lanes]`."""
        rows = math.prod(a.size for a in axes)
        shape = [rows, piece.lanes.size]
        if piece.packing is None:
            left = f"tl.reshape({self._plain(e, first, env, axes, piece)}, {shape})"
        else:
            left = piece.packing.operand(self._unpacked(e, c, first, env, axes, piece.packing), rows)
            for plane in range(1, self.planes(e, first)):
                more = self._unpacked(e, c, first, env, axes, piece.packing, plane)
                left = f"{e.bind(left, (), True).text} + {piece.packing.operand(more, rows)} * {2**plane}.0"
        left = e.bind(left, (), True).text
        for i in c.codes:
            if i != first:
                more = f"tl.reshape({self._plain(e, i, env, axes, piece)}, {shape})"
                left = e.bind(f"{left} * {more}", (), True).text
        return left

    def _plain(self, e: Emitter, i: int, env: Env, axes: Sequence[Axis], piece: _Piece) -> str:
        """One number a lane, with all axes."""
        state, row, indices = self.place(e, i, {**env, **piece.at})
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, e.sizes, row, indices, self.mask(own, True))
        found = e.bind(f"{text}.to(OPERAND)", own, True)
        return spread(found, [*axes, piece.lanes])

    def planes(self, e: Emitter, i: int) -> int:
        """Planes of bits of the state behind a view; 1 where it has none."""
        return PLANES.get(self._state(e.graph, i).dtype, 1)

    def _state(self, graph: Graph, i: int) -> StateDecl:
        """The state behind a view."""
        return self.states[graph.nodes[view(graph, i)[-1]].attr["name"]]

    def _unpacked(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        axes: Sequence[Axis],
        p: Packing,
        plane: int = 0,
    ) -> str:
        """The numbers in the units of a piece, of one plane."""
        return f"unpack({self._words(e, c, first, env, axes, p, plane)}, {p.bits}, {p.unit}, OPERAND)"

    def _words(
        self,
        e: Emitter,
        c: CodeProduct,
        first: int,
        env: Env,
        axes: Sequence[Axis],
        p: Packing,
        plane: int = 0,
    ) -> str:
        """The units of a piece, `[rows, units]`."""
        units = e.axis(lane_name(c.dim), p.units)
        start = p.offset + p.start
        lane = Tile(units.index if not start else f"{start} + {units.index}", (units,))
        factors = []
        for i in (first, *c.signs):
            state, row, indices = self.place(e, i, {**env, **dict.fromkeys(c.dims, lane)}, c.dim)
            own = order([*row.axes, *(a for t in indices for a in t.axes)])
            mask = self.mask(own, True)
            if p.real < p.units:
                inside = Tile(f"({units.index} < {p.real})", (units,)).to(own)
                mask = inside if mask is None else f"{mask} & {inside}"
            if len(c.dims) > 1:
                outer = indices[: -len(c.dims)]
                text, own = flat_text(state, e.sizes, row, outer, lane, mask, p.unit)
            else:
                text, own = unit_text(state.name, state, e.sizes, row, indices, mask, p.unit, plane)
            factors.append(self._once(e, text, own))
        words = spread(self._signed(e, factors), [*axes, units])
        return f"tl.reshape({words}, {[math.prod(a.size for a in axes), p.units]})"

    def place(self, e: Emitter, i: int, env: Env, packed: str = "") -> tuple[StateDecl, Tile, list[Tile]]:
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

    def _numbers(
        self, e: Emitter, c: CodeProduct, head: Axis | None, piece: _Piece, start: int = 0, heads: int = 0
    ) -> str:
        """What is multiplied with codes, `[heads, lanes]`; zero on padding.

        Args:
            start: the first head.
            heads: how many there are, where it is not the first.
        """
        env: dict[str, Tile] = dict(piece.at)
        if head is not None:
            at = f"tl.minimum({start} + {head.index}, {heads - 1})" if start else head.index
            env["head"] = Tile(at, (head,))
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in c.query]
        axes = order([a for t in factors for a in t.axes])
        target = [piece.lanes] if head is None else [head, piece.lanes]
        found = e.shared(spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target)
        text = found.text if head is not None else f"{found.text}[None, :]"
        if piece.inside is not None:
            text = f"tl.where({piece.inside}[None, :], {text}, 0.0)"
        return text

    def _query(self, e: Emitter, c: CodeProduct, head: Axis | None, piece: _Piece) -> list[str]:
        """The right operands, `[heads, lanes]` each, or one with twice as many rows: two numbers hold a query's."""
        text = self._numbers(e, c, head, piece)
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
            state, row, indices = self.place(e, i, {**env, **{d: Tile("0") for d in c.dims}})
            if state.dtype in SCALED:
                own = order([*row.axes, *(a for t in indices[:-1] for a in t.axes)])
                text, own = scale_text(state.name, state, e.sizes, row, indices[:-1], self.mask(own, True))
                result = self.times(e, result, e.bind(text, own, True))
        for i in c.rest:
            names = e.graph.nodes[i].type.names
            result = self.times(e, result, e.emit(i, {n: t for n, t in env.items() if n in names}))
        return result

    @staticmethod
    def times(e: Emitter, a: Tile, b: Tile) -> Tile:
        axes = order([*a.axes, *b.axes])
        return e.bind(f"{a.to(axes)} * {b.to(axes)}", axes, True)


def lane_name(dim: str) -> str:
    """Name of the axis along which a dimension is summed."""
    return "dim" if dim == "dim" else LANE


def _joined(words: Sequence[str]) -> str:
    """The text of tiles side by side along new last dimensions: as one number of a word, lowest bit last."""
    if len(words) == 1:
        return words[0]
    return f"tl.join({_joined(words[::2])}, {_joined(words[1::2])})"


def spread(x: Tile, axes: Sequence[Axis]) -> str:
    """A tile with all of some axes, in their order."""
    if tuple(axes) == x.axes:
        return x.text
    if not x.axes:
        return f"tl.full({[a.size for a in axes]}, {x.text}, tl.float32)"
    assert [a for a in axes if a in x.axes] == list(x.axes), (x, axes)
    shape = [a.size for a in axes]
    return f"tl.broadcast_to({x.to(axes)}, {shape})"
