"""The text of products of a query with codes that lie by columns: see `whole_rows`.

Codes of one state are multiplied as bytes, with a query of three bytes a number: integer products are exact, and
unpacking takes an instruction for four numbers. Codes times codes that all rows of a page share, signs times a page's
amplitudes, are pairs of bf16 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vortex_core.compiler.triton.code_product import CodeProduct, widest
from vortex_core.compiler.triton.code_view import lane_name, place, spread, unit_packings
from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import bytes_text, code_text, unit_text
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order
from vortex_core.compiler.triton.whole_rows import Columns, Words, columns_of, words_of
from vortex_core.ir.program import StateDecl

LEAST_ROWS = 64
MOST_HEADS = 16  # two a product
DIGITS = 3  # bytes of a query's number
LARGEST = 8.0e6  # that they hold, and a little less
MOST_LANES = 64  # of a product of bytes, or one word's: more hold more registers
LEAST_PAIRS = 4  # of which Triton takes four numbers, and not two, from each thread in turn
_TINY = 1.0e-30


class ColumnProduct:
    """Writes one product.

    Args:
        states: by name.
        mask: condition text on real lanes of axes.
        axes: of the rows.
        found: how the factor with the most rows is read.
    """

    def __init__(
        self,
        e: Emitter,
        states: Mapping[str, StateDecl],
        mask: Callable[[Sequence[Axis], bool], str | None],
        c: CodeProduct,
        env: Env,
        head: Axis | None,
        axes: tuple[Axis, ...],
        found: Columns,
    ) -> None:
        self.e, self.states, self.mask, self.c, self.env = e, states, mask, c, env
        self.head, self.axes, self.found = head, axes, found
        self.first = widest(e.graph, c)
        self.others = [i for i in c.codes if i != self.first]
        self.lane = lane_name(c.dim)
        self.signs = False  # whether codes are signs, and others 4-bit codes of a page
        self.starts: dict[int, int] = {}  # the column where each code's view starts
        self.rows = math.prod(a.size for a in axes)
        self.real = e.graph.nodes[self.first].type.extent(c.dim).resolve(e.sizes)

    def emit(self) -> str | None:
        """The sums `[rows, heads]`, or None where these factors do not suit it."""
        if self.others:
            names = {n for i in self.others for n in self.e.graph.nodes[i].type.names}
            if not names <= {"page", self.c.dim} or self.found.planes > 1:
                return None
            units = [unit_packings(self.e, self.states, self.c.dim, i, 4, (16,)) for i in self.others]
            self.signs = (
                self.found.bits == 1 and self.found.unit > 8 and all(u and u[0].bits == 4 for u in units)
            )
            bytewise = self.found.unit == 8 or (not self.signs and self.found.per >= 2 * LEAST_PAIRS)
            self.found = replace(self.found, low=3 if bytewise else 2)
            sums = self._pairs()
        else:
            planes = range(self.found.planes)
            parts = self.c.parts or ((self.first, 1.0),)
            self.starts = {}
            for code, _ in parts:
                own = columns_of(self.e.graph, self.c, self.states, self.e.sizes, code)
                if own is None or replace(own, first=0) != replace(self.found, first=0):
                    return None
                self.starts[code] = own.first
            every = [(code, plane, weight * 2**plane) for code, weight in parts for plane in planes]
            words = words_of(self.found, len(every), MOST_LANES)
            sums = self._bytes(words, every)
        return self._joined(sums)

    def _heads(self) -> range:
        return range(0, 1 if self.head is None else self.head.real, 2)

    def _joined(self, sums: list[str]) -> str:
        """Sums of two heads each, side by side."""
        width = 1 if self.head is None else self.head.size
        if width == 1:
            return f"tl.sum({sums[0]}, axis=1)"
        while len(sums) * 2 < width:  # heads that are none
            sums = [*sums, sums[-1]]
        while len(sums) > 1:
            shape = [self.rows, width // (len(sums) // 2)]
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [
                self._bind(f"tl.reshape(tl.permute(tl.join({a}, {b}), (0, 2, 1)), {shape})") for a, b in pairs
            ]
        return sums[0]

    def _bind(self, text: str) -> str:
        return self.e.bind(text, (), True).text

    def _shared(self, text: str) -> str:
        return self.e.shared(text, ()).text

    # ---- the query -----------------------------------------------------------------------------------------

    def _two_heads(self, start: int, lanes: Axis, channel: str, end: int) -> str:
        """The query's factors for two heads at the channels of some lanes, `[2, lanes]`; 0 where there are none."""
        e, real = self.e, self.real
        two = e.axis("two", 2)
        last = 0 if self.head is None else self.head.real - 1
        at = f"{start} + {two.index}" if start else two.index
        head = Tile(f"tl.minimum({at}, {last})" if start + 1 > last else at, (two,))
        bound = channel if end <= real else f"tl.minimum({channel}, {real - 1})"
        env = {self.c.dim: e.shared(bound, (lanes,)), "head": head}
        factors = [e.emit(i, {n: env[n] for n in e.graph.nodes[i].type.names}) for i in self.c.query]
        axes = order([a for t in factors for a in t.axes])
        target = [two, lanes]
        text = e.shared(spread(Tile(" * ".join(t.to(axes) for t in factors), axes), target), target).text
        inside = [f"(({channel}) < {real})[None, :]"] if end > real else []
        inside += [f"({two.index} == 0)[:, None]"] if last == 0 else []
        return self._shared(f"tl.where({' & '.join(inside)}, {text}, 0.0)") if inside else text

    # ---- bytes ---------------------------------------------------------------------------------------------

    def _words(self, words: Words, parts: Sequence[tuple[int, int]]) -> str:
        """Words of every row as the left operand."""
        per = len(words.columns) // words.words
        columns = [self._column_bytes(*parts[part], column) for part, column in words.columns]
        made = []
        for n in range(0, len(columns), per):
            x = f"tl.reshape({self._side_by_side(columns[n : n + per])}, [{self.rows}, 4])"
            made.append(self._bind(f"numbers({x}, {words.bits})"))
        every = self._side_by_side(made)
        return self._bind(f"long_bytes({every}, {self.rows}, {words.places}, {words.words})")

    def _side_by_side(self, tiles: list[str]) -> str:
        """Tiles with a dimension more that counts them."""
        if len(tiles) == 1:
            return tiles[0]
        return self._bind(f"tl.join({self._side_by_side(tiles[::2])}, {self._side_by_side(tiles[1::2])})")

    def _column_bytes(self, code: int, plane: int, column: int) -> str:
        """The bytes of a column, row by row."""
        e, size = self.e, self.found.unit // 8
        env = {**self.env, self.c.dim: Tile(str(self.starts[code] + column))}
        state, row, indices = place(e, self.states, code, env, self.c.dim)
        inner = indices[-2]
        axis = inner.axes[0] if len(inner.axes) == 1 else None
        rows = state.stored[-2][1].resolve(e.sizes)
        if axis is not None and inner.text == axis.index and axis.real == rows and axis == self.axes[-1]:
            lane = e.axis("row_bytes", rows * size)
            lanes: tuple[Axis, ...] = (lane,)
            at = Tile(lane.index, lanes)
        else:
            lane = e.axis(self.lane, size)
            lanes = (*inner.axes, lane)
            at = Tile(f"({inner.to(lanes)}) * {size} + {Tile(lane.index, (lane,)).to(lanes)}", lanes)
        own = (*order([*row.axes, *(a for t in indices[:-2] for a in t.axes)]), *lanes)
        text = bytes_text(
            state, e.sizes, row, indices[:-2], indices[-1].text, at, own, plane, self.mask(own, True)
        )
        assert math.prod(a.size for a in own) == self.rows * size, (own, self.axes)
        return f"tl.reshape({e.bind(text, own, True).text}, {[self.rows, size]})"

    def _bytes(self, words: list[Words], parts: list[tuple[int, int, float]]) -> list[str]:
        """The sums for two heads at a time of codes as bytes.

        Args:
            parts: code, plane and weight of each.
        """
        weights = [weight for *_, weight in parts]
        codes = [(code, plane) for code, plane, _ in parts]
        # Of several queries each word's numbers serve all before the next word's are unpacked, so that registers hold them.
        lefts = [self._words(w, codes) for w in words] if len(self._heads()) == 1 else []
        queries = [_Query(self, start, words, weights) for start in self._heads()]
        sums = [["" for _ in range(DIGITS)] for _ in queries]
        for n, w in enumerate(words):
            left = lefts[n] if lefts else self._words(w, codes)
            for query, totals in zip(queries, sums, strict=True):
                for d in range(DIGITS):
                    right = query.digit(n, d)
                    extra = f", {totals[d]}" if totals[d] else ""
                    totals[d] = self._bind(f"tl.dot({left}, tl.trans({right}){extra}, out_dtype=tl.int32)")
        return [query.result(totals) for query, totals in zip(queries, sums, strict=True)]

    def weighed(self, start: int, words: Words, weights: list[float]) -> tuple[str, str, str]:
        """The query at the channels of some words, the same as it meets their bytes, and what a number is too large
        by where its byte is 0, of the query."""
        e = self.e
        lanes = e.axis(self.lane, words.lanes)
        columns = e.shared(words.column(lanes.index), (lanes,)).text
        channel = e.shared(words.channel(lanes.index, columns), (lanes,)).text
        real_columns = sum(words.sizes)
        query = self._two_heads(start, lanes, channel, self.real + 1)
        if words.start + len(words.columns) > real_columns:
            query = self._shared(f"tl.where(({columns} < {real_columns})[None, :], {query}, 0.0)")
        places = e.shared(words.place(lanes.index), (lanes,)).text
        by_part = words.by_part(columns, [repr(w) for w in weights])
        if words.bits == 4:  # the upper number of a byte is 16 times as much, the lower too large by 8
            weight = f"tl.where({places} == 0, 1.0, 0.0625)"
            least = f"tl.where({places} == 0, -8.0, 0.0)"
        else:  # 0 and 2 ** n for -1 and 1
            weight = f"(2.0 / (1 << ({places} & 3)).to(tl.float32)) * {by_part}"
            least = f"tl.zeros([{lanes.size}], tl.float32) - {by_part}"
        weight, least = (e.shared(text, (lanes,)).text for text in (weight, least))
        return query, self._shared(f"{query} * {weight}[None, :]"), least

    # ---- pairs ---------------------------------------------------------------------------------------------

    def _pairs(self) -> list[str]:
        """The sums for two heads at a time of pairs of bf16 numbers; two such numbers hold a query's."""
        found = self.found
        lanes = self.e.axis(self.lane, found.lanes)
        totals = ["" for _ in self._heads()]
        lefts = [self._times_page(n) for n in range(found.count)] if len(totals) == 1 else []
        for n in range(found.count):
            left = lefts[n] if lefts else self._times_page(n)
            for at, start in enumerate(self._heads()):
                channel = (found.sign_channel if self.signs else found.channel)(n, lanes.index)
                query = self._two_heads(start, lanes, channel, (n + 1) * found.per)
                query = self._shared(f"long_query({query}, {lanes.size}, {found.low})")
                high = self._shared(f"{query}.to(OPERAND)")
                rights = [high]
                if not self.c.exact:
                    rights.append(self._shared(f"({query} - {high}.to(tl.float32)).to(OPERAND)"))
                for right in rights:
                    extra = f", {totals[at]}" if totals[at] else ""
                    text = f'tl.dot({left}, tl.trans({right}){extra}, input_precision="tf32x3")'
                    totals[at] = self._bind(text)
        return [self._bind(f"short_rows({total}, {self.rows})") for total in totals]

    def _times_page(self, n: int) -> str:
        """A column of codes times codes that all rows of a page share, as the left operand."""
        e, found = self.e, self.found
        env = {**self.env, self.c.dim: Tile(str(found.first + n))}
        state, row, indices = place(e, self.states, self.first, env, self.c.dim)
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        assert own == self.axes, (own, self.axes)
        text, own = unit_text(state.name, state, e.sizes, row, indices, self.mask(own, True), found.unit)
        words = e.bind(text, own, True).text
        if self.signs:
            return self._signed(n, words)
        x = self._bind(f"halves({words}, {found.unit})")
        pairs = []
        for at in range(found.per // 2):
            factors = [self._page_pair(i, n * found.per + at) for i in self.others]
            shown = " * ".join(t.to((*own, t.axes[-1])) for t in factors)
            pairs.append(self._bind(f"pair_times({x}, {shown}, {at * found.bits}, {found.bits}, OPERAND)"))
        while len(pairs) > 1:
            pairs = [self._bind(f"tl.join({a}, {b})") for a, b in zip(pairs[::2], pairs[1::2], strict=True)]
        left = f"tl.reshape({pairs[0]}, [{self.rows}, {found.per}])"
        return self._bind(f"long_rows({left}, {self.rows}, {found.per}, {found.low})")

    def _page_units(self, i: int, first: int, axis: Axis) -> Tile:
        """Units of four channels of a page's 4-bit codes, from a channel; beyond the last channel the last unit."""
        e = self.e
        (read,) = unit_packings(e, self.states, self.c.dim, i, 4, (16,))
        last = read.offset + (self.real - 1) // 4
        at = Tile(f"tl.minimum({read.offset + first // 4} + {axis.index}, {last})", (axis,))
        state, row, indices = place(e, self.states, i, {**self.env, self.c.dim: at}, self.c.dim)
        own = order([*row.axes, axis])
        text, own = unit_text(state.name, state, e.sizes, row, indices, self.mask(own, True), 16)
        return self._once(text, own)

    def _signed(self, n: int, words: str) -> str:
        """A column of signs times 4-bit codes of their page, as the left operand."""
        unit = self.found.unit
        axis = self.e.axis(self.lane, unit // 8)
        factors = []
        for i in self.others:
            low, high = (self._page_units(i, n * unit + half * unit // 2, axis) for half in (0, 1))
            factors.append(
                self._once(f"page_pairs({low.text}, {high.text}, OPERAND)", (*low.axes, axis)).text
            )
        return self._bind(f"signed_rows({words}, {' * '.join(factors)}, {unit}, {self.rows}, OPERAND)")

    def _page_pair(self, i: int, channel: int) -> Tile:
        """A page's codes of a channel and of the one half a column further, `[page, 2]`."""
        half = self.found.per // 2
        low, high = (self._page_code(i, min(at, self.real - 1)) for at in (channel, channel + half))
        return self._once(f"tl.join({low.text}, {high.text})", (*low.axes, Axis(self.lane, 2)))

    def _page_code(self, i: int, channel: int) -> Tile:
        """One channel of a page's codes."""
        state, row, indices = place(self.e, self.states, i, {**self.env, self.c.dim: Tile(str(channel))})
        own = order([*row.axes, *(a for t in indices for a in t.axes)])
        text, own = code_text(state.name, state, self.e.sizes, row, indices, self.mask(own, True))
        return self._once(f"({text}).to(OPERAND)", own)

    def _once(self, text: str, axes: Sequence[Axis]) -> Tile:
        """A statement of the loop, or the variable that holds the same already."""
        lines = self.e.inner if self.e.inner is not None else self.e.outer
        found = next((line.split(" = ", 1)[0] for line in lines if line.endswith(f" = {text}")), None)
        return self.e.bind(text, axes, True) if found is None else Tile(found, tuple(axes))


class _Query:
    """Two heads of a query as bytes, beside some words of codes."""

    def __init__(self, product: ColumnProduct, start: int, words: list[Words], weights: list[float]) -> None:
        self.product, self.words = product, words
        tops, lowers = [], []
        self.queries = []
        for w in words:
            query, weighed, least = product.weighed(start, w, weights)
            self.queries.append(weighed)
            tops.append(f"tl.max(tl.abs({weighed}), axis=1)")
            lowers.append(f"tl.sum({query} * {least}[None, :], axis=1)")
        top = tops[0]
        for other in tops[1:]:
            top = f"tl.maximum({top}, {other})"
        top = self._shared(f"tl.maximum({top}, {_TINY})")
        self.scale = self._shared(f"{LARGEST} / {top}")
        # Four rows count as one: a channel is there four times.
        self.lower = self._shared(f"four_times(0.25 * ({' + '.join(lowers)}))")
        self.unit = self._shared(f"four_times({top} * {1.0 / LARGEST!r})")

    def _shared(self, text: str) -> str:
        return self.product.e.shared(text, ()).text

    def digit(self, n: int, d: int) -> str:
        """The right operand: a byte of the numbers that meet some words."""
        digit = self._shared(f"digit({self.queries[n]}, {self.scale}[:, None], {d})")
        return self._shared(f"long_query({digit}, {self.words[n].lanes}, 3)")

    def result(self, sums: list[str]) -> str:
        """The sums, from those of each byte."""
        bind, rows = self.product.e.bind, self.product.rows
        high, middle, low = (f"{total}.to(tl.float32)" for total in sums)
        total = bind(f"{high} * 65536.0 + ({middle} * 256.0 + {low})", (), True).text
        text = f"short_rows({total} * {self.unit}[None, :] + {self.lower}[None, :], {rows})"
        return bind(text, (), True).text
