"""The `update_kernel`: forward_cache for completed pages, one program a page and kv head."""

from __future__ import annotations

import math

from vortex_core.compiler.triton.emitter import Emitter
from vortex_core.compiler.triton.fields import PER_BYTE, store_lines, store_row_lines, stored_shape
from vortex_core.compiler.triton.kernel_text import KernelWriter, full, literal
from vortex_core.compiler.triton.tile import MAX_PADDING, Axis, Env, Tile, order, pow2
from vortex_core.ir.graph import Node
from vortex_core.ir.program import SCALED, StateDecl
from vortex_core.ir.types import PLANES

WARPS, TOGETHER_WARPS = 4, 8
LONG = 100  # lines of a kernel that takes a second or more to compile
MUCH_SHORTER = 0.5
# By which reductions must fall. Threads exchange numbers for each, and for each store of bytes that are put together.
FEWER_EXCHANGES = 1.5
# Lines of a kernel for eight warps: a longer one holds more values than the 128 registers that those get.
MOST_LINES = 180
# Numbers of a warp's part of a tile from which bytes are put together.
MOST_TOGETHER = 1024
MOST_NUMBERS = 32768  # of a state that are packed at once: four warps' registers hold no more


class UpdateKernel(KernelWriter):
    """Writes the kernel that computes page states.

    Numbers that share a byte are computed apart, each with a tile of its own that lies as the bytes do, or all in one
    tile, from which bytes are put together. One tile costs an exchange and saves computing again, for each of the eight
    numbers of a byte, what leads to them.
    """

    warps = WARPS
    whole = False
    largest = 0  # of those tiles

    def text(self) -> str:
        """The kernel, rows in one tile where it is long and that makes it much shorter: the time that compiling takes
        grows with the square of statements."""
        found = []
        for self.whole in (False, True):
            found.append(self._text())
        apart, whole = found
        lines, left = apart.count("\n"), whole.count("\n")
        warps = TOGETHER_WARPS if left <= MOST_LINES else WARPS
        pays = lines >= LONG and left < MUCH_SHORTER * lines
        pays = pays and _exchanges(apart) >= FEWER_EXCHANGES * _exchanges(whole)
        if not pays or self.largest > MOST_TOGETHER * warps:
            return apart
        self.warps = warps
        return whole

    def _text(self) -> str:
        """The kernel. With DECODE it finds the pages that this step completed by itself."""
        graph = self.program.cache
        value_dim, head_dim = self.geometry.value_dim, self.geometry.head_dim

        def source(e: Emitter, node: Node, env: Env) -> Tile:
            if node.op == "param":
                return self.param(e, node, env, "head")
            token, dim = env["token"], env["dim"]
            axes = order([*token.axes, *dim.axes])
            mask = self.mask_text(axes, False)
            n = node.op
            text = f"{n}_ptr + head.to(tl.int64) * {n}_head + page * {n}_page + ({token.to(axes)}) * {n}_token + ({dim.to(axes)})"
            if n == "v" and value_dim < head_dim:  # MLA: the latent's rotary channels are no values
                inside = f"(({dim.to(axes)}) < {value_dim})"
                mask = inside if mask is None else f"{mask} & {inside}"
            guard = "" if mask is None else f", mask={mask}, other=0.0"
            return e.bind(f"tl.load({text}{guard}).to(tl.float32)", axes, False)

        emitter = Emitter(graph, self.sizes, source, self.channel_start, None)
        row = Tile("row")
        for name, i in graph.writes:
            self._write_state(emitter, self.states[name], i, row)
        for s in self.program.states:
            if s.carried and not s.of_request:
                env = emitter.identity(s.dims)
                axes = order([a for t in env.values() for a in t.axes])
                value = (
                    Tile(repr(s.init))
                    if not axes
                    else Tile(
                        f"tl.full([{', '.join(str(a.size) for a in axes)}], {s.init!r}, tl.float32)", axes
                    )
                )
                emitter.outer += store_lines(
                    s.name,
                    s,
                    self.sizes,
                    row,
                    list(env.values()),
                    literal(value),
                    self.mask_text(axes, False),
                )
        if self.program.needs_mass:
            axis = emitter.axis("head", self.sizes["G"])
            guard = f", mask={axis.mask}" if axis.mask else ""
            emitter.outer.append(
                f"tl.store(mass_ptr + row * {axis.real} + {axis.index}, tl.zeros([{axis.size}], tl.float32){guard})"
            )
        args = [
            "k_ptr",
            "v_ptr",
            "k_head",
            "k_page",
            "k_token",
            "v_head",
            "v_page",
            "v_token",
            "pages_ptr",
            "table_ptr",
            "table_stride",
            "lengths_ptr",
            "pool_pages",
            *self.state_args(),
            *self.param_args(),
        ]
        body = [
            "item = tl.program_id(0)",
            "head = tl.program_id(1)",
            "if DECODE:",
            "    length = tl.load(lengths_ptr + item)",
            f"    if (length % {self.page_size} != 0) | (length == 0):",
            "        return",
            f"    page = tl.load(table_ptr + item.to(tl.int64) * table_stride + length // {self.page_size} - 1).to(tl.int64)",
            "else:",
            "    page = tl.load(pages_ptr + item).to(tl.int64)",
            "row = head.to(tl.int64) * pool_pages + page",
            *self.axes_lines(emitter),
            *emitter.outer,
        ]
        return self.kernel("update_kernel", args, ["DECODE"], body)

    def _write_state(self, emitter: Emitter, state: StateDecl, i: int, row: Tile) -> None:
        env = emitter.identity(state.dims)
        names = [n for n, _ in state.dims]
        if state.dtype in (*SCALED, "bits"):
            self._write_rows(emitter, state, i, env, [n for n, _ in state.stored])
            return
        width = state.dims[-1][1].resolve(self.sizes) if names and names[-1] == "dim" else 0
        # A tile is tokens x channels: keep it in registers, and do not pad odd widths to the next power of two.
        limit = max(16, 8192 // self.page_size)
        chunk = width
        if width and (pow2(width) > MAX_PADDING * width or width > limit):
            chunk = max(16, min(limit, width & -width)) if width & -width >= 16 else width
        for start in range(0, width or 1, chunk or 1):
            if width and chunk != width:
                axis = emitter.axis("dim", chunk)
                env["dim"] = Tile(axis.index if not start else f"{start} + {axis.index}", (axis,))
            value = emitter.emit(i, {n: t for n, t in env.items() if n in emitter.graph.nodes[i].type.names})
            axes = order([a for t in env.values() for a in t.axes])
            emitter.outer += store_lines(
                state.name,
                state,
                self.sizes,
                row,
                [env[n] for n in names],
                literal(value),
                self.mask_text(axes, False),
            )

    def _deal(self, emitter: Emitter, value: Tile, axis: Axis, lane: Axis, per: int, fill: str) -> list[Tile]:
        """Every `per`-th lane of the last axis, from each start: a value computed whole, ready to be packed."""
        inside = emitter.masked(value, axis, fill)
        outer = tuple(a for a in value.axes if a != axis)
        if value.axes[-1] != axis:
            moved = tuple(value.axes.index(a) for a in (*outer, axis))
            inside = emitter.bind(f"tl.permute({inside}, {moved})", (*outer, axis), False).text
        there = min(per, axis.size)  # fewer lanes than a byte holds: the rest of it is padding
        shape = [*(a.size for a in outer), axis.size // there, there]
        assert axis.size // there == lane.size
        dealt = emitter.bind(f"tl.reshape({inside}, {shape})", (), False)
        index = ", ".join(["None"] * (len(outer) + 1) + [":"])
        groups = []
        for n in range(there):
            text = f"tl.sum(tl.where((tl.arange(0, {there}) == {n})[{index}], {dealt.text}, 0.0), axis={len(outer) + 1})"
            groups.append(emitter.bind(text, (*outer, lane), False))
        none = f"tl.full({[a.size for a in (*outer, lane)]}, {fill}, tl.float32)"
        return groups + [emitter.bind(none, (*outer, lane), False) for _ in range(there, per)]

    def _write_rows(
        self, emitter: Emitter, state: StateDecl, i: int, env: dict[str, Tile], names: list[str]
    ) -> None:
        per = PER_BYTE[state.dtype]
        if not names:  # one bit a page
            value = emitter.emit(i, {})
            emitter.outer.append(
                f"tl.store({state.name}_ptr + row, tl.where({value.text} >= 0, 1, 0).to(tl.uint8))"
            )
            return
        last, width = names[-1], stored_shape(state, self.sizes)[-1] // PLANES.get(state.dtype, 1)
        lane = emitter.axis(f"{last}_lane", width)
        cut = self._cut(emitter, i, env, names[:-1], lane.size * per)
        if cut is not None:  # rows have scales of their own
            name, chunk = cut
            rows, extent = emitter.axis(name, chunk), dict(state.dims)[name].resolve(self.sizes)
            for start in range(0, extent, chunk):
                shifted = Tile(f"{start} + {rows.index}" if start else rows.index, (rows,))
                self._write_some_rows(emitter, state, i, {**env, name: shifted}, names, lane)
            return
        self._write_some_rows(emitter, state, i, env, names, lane)

    def _cut(
        self, emitter: Emitter, i: int, env: dict[str, Tile], names: list[str], row: int
    ) -> tuple[str, int] | None:
        """Along which dimension, and how many at a time, rows are written where all at once would spill."""
        sizes = {n: a.size for n in names for a in env[n].axes}
        total = row * math.prod(sizes.values())
        free = [n for n in sizes if not emitter.needs_whole(i, n)]
        if total <= MOST_NUMBERS or not free:
            return None
        name = max(free, key=lambda n: (sizes[n], n))
        real = next(a.real for a in env[name].axes)
        chunk = real & -real
        while chunk > 1 and total // sizes[name] * chunk > MOST_NUMBERS // 2:
            chunk //= 2
        return None if chunk == real else (name, chunk)

    def _write_some_rows(
        self,
        emitter: Emitter,
        state: StateDecl,
        i: int,
        env: dict[str, Tile],
        names: list[str],
        lane: Axis,
    ) -> None:
        per, last = PER_BYTE[state.dtype], names[-1]
        real = state.stored[-1][1].resolve(self.sizes)
        groups: list[Tile] = []
        fill = "-1.0" if state.dtype == "bits" else "0.0"
        others = [env[name] for name in names[:-1]]
        axis = emitter.axis(last, real) if self.whole or per > 1 else lane
        if self.whole:
            if per == 1:
                lane = axis
            value = emitter.emit(i, {**env, last: Tile(axis.index, (axis,))})
            axes = order([a for t in others for a in t.axes] + [axis])
            self.largest = max(self.largest, math.prod(a.size for a in axes))
            text = emitter.masked(Tile(full(value, axes), axes), axis, fill)
            groups.append(value if text == value.text else emitter.bind(text, axes, False))
        elif emitter.needs_whole(i, last) and per > 1:
            groups = self._deal(emitter, emitter.emit(i, env), axis, lane, per, fill)
        else:
            for n in range(per):
                index = Tile(lane.index if per == 1 else f"{lane.index} * {per} + {n}", (lane,))
                value = emitter.emit(i, {**env, last: index})
                axes = order([a for t in others for a in t.axes] + [lane])
                inside = Tile(f"(({index.text}) < {real})", (lane,)).to(axes)
                groups.append(emitter.bind(f"tl.where({inside}, {value.to(axes)}, {fill})", axes, False))
        mask = self.mask_text([lane if a == axis else a for a in groups[0].axes], False)
        emitter.outer += store_row_lines(state.name, state, self.sizes, "row", others, groups, lane, mask)


def _exchanges(text: str) -> int:
    return sum(text.count(f"tl.{kind}(") for kind in ("sum", "max", "min", "dot"))
