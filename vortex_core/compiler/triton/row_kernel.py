"""The `row_kernel`, one program a row: operators that look across pages, with one loop over the row's pages a barrier,
and last what the request carries to the next step, which every scoring program has read by then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vortex_core.compiler.triton.emitter import REDUCE, Emitter, neutral
from vortex_core.compiler.triton.kernel_text import full
from vortex_core.compiler.triton.score_kernel import IndexKernel
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order, pow2, unsupported
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.schedule import Schedule, per_page

ROW_BLOCK = 256
MAX_READ = 32768  # lanes that a block of pages has in the registers of four warps
ROW_WARPS, MOST_WARPS = 4, 16
MOST_BLOCK = 4096
# Numbers of a thread, for one value of a page. There are as many programs as rows, often fewer than multiprocessors, and each
# waits for its loads and for all its warps once a block of pages: fewer blocks wait less often. More warps where each has
# enough to do.
MOST_NUMBERS, FEW_NUMBERS = 32, 16


def row_cut(lanes: int, pages: int) -> tuple[int, int]:
    """`(pages at once, warps)` of the row kernel for rows of up to `pages` pages.

    Args:
        lanes: of the widest value of a page.
    """
    warps = ROW_WARPS
    while warps < MOST_WARPS and lanes * pages > warps * 32 * FEW_NUMBERS:
        warps *= 2
    block = min(pow2(pages), MOST_BLOCK, warps * 32 * MOST_NUMBERS // lanes)
    return max(ROW_BLOCK, block), warps


def row_text(writer: IndexKernel, most: int = ROW_BLOCK, warps: int = ROW_WARPS) -> str:
    """The source text of the row kernel.

    Args:
        most: pages at once, where registers hold as many.
        warps: of a program.
    """
    graph, plan = writer.program.index, writer.schedule
    # A row without a complete page has scored nothing, and carries nothing on.
    begin = ["if complete == 0:", "    return"] if writer.program.request_states else []
    if not plan.barriers:
        e = writer.emitter(None)
        writer.remember(e)
        body = [*writer.prologue(False), *begin, *writer.axes_lines(e), *e.outer]
        return writer.kernel("row_kernel", writer.index_args(), [], body)
    widest = max(
        (
            per_page(n, writer.sizes)
            for i, n in enumerate(graph.nodes)
            if "page" in n.type.names and plan.level[i]
        ),
        default=1,
    )
    more = max(1, warps // ROW_WARPS)
    block = max(16, min(most, pow2(more * 8192 // max(1, widest)) // 2 or 1))
    block = max(16, min(block, more * MAX_READ // _read(writer)))
    axis = Axis("page", block)
    e = writer.emitter(axis)
    rows = _RowLoops(writer, e, axis)
    for level in range(1, plan.barriers + 1):
        rows.loop(level)
    e.begin_loop()
    writer.outputs(e)
    rows.close()
    writer.remember(e)
    body = [*writer.prologue(False), *begin, *writer.axes_lines(e), *e.outer]
    return writer.kernel("row_kernel", writer.index_args(), [], body)


def row_lanes(graph: Graph, plan: Schedule, sizes: Mapping[str, int]) -> int:
    """Lanes of the widest value of a page that the row kernel computes."""
    values = [n for i, n in enumerate(graph.nodes) if "page" in n.type.names and plan.level[i]]
    return max(
        (math.prod(pow2(e.resolve(sizes)) for d, e in n.type.dims if d != "page") for n in values), default=1
    )


def _read(writer: IndexKernel) -> int:
    """The most lanes of a page's value that the kernel reads or computes again."""
    graph, plan = writer.program.index, writer.schedule
    read = {j for i, n in enumerate(graph.nodes) if plan.level[i] for j in n.inputs if plan.level[j] == 0}
    return max(
        (
            math.prod(pow2(e.resolve(writer.sizes)) for name, e in graph.nodes[j].type.dims if name != "page")
            for j in read
            if "page" in graph.nodes[j].type.names
        ),
        default=1,
    )


class _RowLoops:
    """The loops of the row kernel: one for each level of barriers, then one for the outputs."""

    def __init__(self, writer: IndexKernel, emitter: Emitter, axis: Axis) -> None:
        self.g, self.e, self.axis = writer, emitter, axis
        self.graph = emitter.graph
        self.stored = set(writer.schedule.frontier)
        self.softmax: dict[int, tuple[Tile, Tile]] = {}
        emitter.page_value = self.page_value

    def close(self) -> None:
        """Append the loop whose body was just written."""
        body = self.e.end_loop()
        lines = [*self.g.page_lines(self.axis), *body]
        self.e.outer.append(f"for start in range(0, complete, {self.axis.size}):")
        self.e.outer += [f"    {line}" for line in lines]

    def page_value(self, i: int, env: Env) -> Tile | None:
        """Page values that earlier launches or loops left behind."""
        node = self.graph.nodes[i]
        if i in self.stored:
            pointer, axes = self.g.scratch_pointer(i, env)
            text = f"tl.load({pointer}, mask={self.g.mask_text(axes, True)}, other=0.0)"
            return self.e.bind(f"{text} != 0" if node.type.kind == "bool" else text, axes, True)
        if node.attr.get("dim") != "page":
            return None
        if i in self.softmax:
            self._check_identity(node, env)
            top, total = self.softmax[i]
            x = self.e.emit(node.inputs[0], env)
            return self.e.bind(f"tl.exp({x.text} - {top.to(x.axes)}) / {total.to(x.axes)}", x.axes, True)
        if node.op in ("conv", "maxpool"):
            return self._neighbours(node, env)
        raise AssertionError(node.op)

    def _check_identity(self, node: Node, env: Env) -> None:
        if {n: t.text for n, t in env.items()} != {
            n: t.text for n, t in self.e.identity(node.type.dims).items()
        }:
            raise unsupported(node, "a part of its result is taken; slice or split its input instead")

    def _neighbours(self, node: Node, env: Env) -> Tile:
        (source,) = node.inputs
        size = len(node.attr["weights"]) if node.op == "conv" else node.attr["size"]
        half = size // 2
        total: Tile | None = None
        for n in range(size):
            step = n - half
            pointer, axes = self.g.scratch_pointer(source, env, f" + {step}")
            near = f"(({self.axis.index} + {step}) >= 0) & (({self.axis.index} + {step}) < complete)"
            mask = " & ".join(
                p
                for p in (
                    Tile(f"({near})", (self.axis,)).to(axes),
                    self.g.mask_text([a for a in axes if a.name != "page"], False)
                    and self.g.mask_text(axes, True),
                )
                if p
            )
            fill = neutral(node.op)
            x = self.e.bind(f"tl.load({pointer}, mask={mask}, other={fill})", axes, True)
            if node.op == "conv":
                text = f"{node.attr['weights'][n]!r} * {x.text}"
                total = self.e.bind(text if total is None else f"{total.text} + {text}", axes, True)
            else:
                total = x if total is None else self.e.bind(f"tl.maximum({total.text}, {x.text})", axes, True)
        assert total is not None
        return total

    def loop(self, level: int) -> None:
        """One pass over the row's pages: everything that needs exactly `level - 1` passes before it."""
        e, plan = self.e, self.g.schedule
        nodes = [
            (i, n)
            for i, n in enumerate(self.graph.nodes)
            if plan.level[i] == level and plan.level[i] > max((plan.level[j] for j in n.inputs), default=0)
        ]
        e.begin_loop()
        assert e.inner is not None
        finish: list[tuple[int, Tile]] = []
        for i, node in nodes:
            if node.op in REDUCE:
                finish.append((i, self._accumulate(i, node)))
            elif node.op == "softmax":
                self.softmax[i] = self._online_softmax(i, node)
            elif node.op == "cumsum":
                self._running_sum(i, node)
        new = [
            i for i in plan.kept.get(level, ()) if i not in self.stored and self.graph.nodes[i].op != "cumsum"
        ]
        for i in new:
            self.g.store_scratch(e, i)
        self.close()
        self.stored |= set(plan.kept.get(level, ()))
        if plan.kept.get(level):
            e.outer.append("tl.debug_barrier()")  # the next loop reads what other lanes stored
        for i, tile in finish:
            e.known[i] = tile

    def _paged(self, i: int, fill: str) -> Tile:
        """A node's value with `fill` on pages that are not there."""
        x = self.e.value(i)
        page_ok = Tile("page_ok", (self.axis,))
        axes = order([*x.axes, self.axis])
        return self.e.bind(f"tl.where({page_ok.to(axes)}, {full(x, axes)}, {fill})", axes, True)

    def _accumulator(self, i: int, suffix: str, axes: Sequence[Axis], fill: str) -> Tile:
        name = f"a{i}{suffix}"
        shape = ", ".join(str(a.size) for a in axes)
        self.e.outer.append(f"{name} = tl.full([{shape}], {fill}, tl.float32)")
        return Tile(name, tuple(axes))

    def _accumulate(self, i: int, node: Node) -> Tile:
        fill, (_, combine) = neutral(node.op), REDUCE[node.op]
        x = self._paged(node.inputs[0], fill)
        part = self.e.fold(node.op, x, node.attr["dims"], True)
        total = self._accumulator(i, "", part.axes, fill)
        assert self.e.inner is not None
        self.e.inner.append(f"{total.text} = {combine.format(total.text, part.text)}")
        return total

    def _online_softmax(self, i: int, node: Node) -> tuple[Tile, Tile]:
        e = self.e
        x = self._paged(node.inputs[0], neutral(node.op))
        at = x.axes.index(self.axis)
        axes = tuple(a for a in x.axes if a != self.axis)
        top = self._accumulator(i, "_max", axes, "-3.4e38")
        total = self._accumulator(i, "_sum", axes, "0.0")
        new = e.bind(f"tl.maximum({top.text}, tl.max({x.text}, axis={at}))", axes, True)
        assert e.inner is not None
        e.inner.append(
            f"{total.text} = {total.text} * tl.exp({top.text} - {new.text}) + tl.sum(tl.exp({x.text} - {new.to(x.axes)}), axis={at})"
        )
        e.inner.append(f"{top.text} = {new.text}")
        return top, total

    def _running_sum(self, i: int, node: Node) -> None:
        e = self.e
        x = self._paged(node.inputs[0], "0.0")
        at = x.axes.index(self.axis)
        axes = tuple(a for a in x.axes if a != self.axis)
        before = self._accumulator(i, "_run", axes, "0.0")
        value = e.bind(f"tl.cumsum({x.text}, axis={at}) + {before.to(x.axes)}", x.axes, True)
        assert e.inner is not None
        e.inner.append(f"{before.text} = {before.text} + tl.sum({x.text}, axis={at})")
        self.g.store_scratch(e, i, value)
