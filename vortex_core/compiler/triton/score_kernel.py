"""What the two kernels of forward_indexer share, and the page-parallel `score_kernel`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from vortex_core.compiler.columns import PACKED
from vortex_core.compiler.triton.code_emitter import LEAST, CodeEmitter
from vortex_core.compiler.triton.code_product import (
    CodeProduct,
    by_columns,
    find_code_products,
    find_totals,
    rows_of,
)
from vortex_core.compiler.triton.contraction import find_contractions
from vortex_core.compiler.triton.emitter import LEAST_ROWS, REDUCE, Emitter
from vortex_core.compiler.triton.fields import load_text, store_lines
from vortex_core.compiler.triton.kernel_text import KernelWriter, full, literal
from vortex_core.compiler.triton.page_emitter import PageEmitter
from vortex_core.compiler.triton.page_product import find_page_products
from vortex_core.compiler.triton.tile import Axis, Env, Tile, order, pow2, unsupported
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import EVERYTHING, crossover_unfit
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program, StateDecl
from vortex_core.ir.query_work import query_work
from vortex_core.ir.schedule import schedule


class IndexKernel(KernelWriter):
    """Loads, stores and outputs of the index graph; writes the page-parallel kernel."""

    def __init__(self, program: Program, geometry: Geometry, page_size: int, *, wide: bool = False) -> None:
        super().__init__(program, geometry, page_size)
        self.wide = wide
        self.schedule = schedule(program.index)
        self.contractions = find_contractions(program.index, self.states)
        self.before = query_work(program.index, self.sizes)
        self.code_products = find_code_products(program.index, self.states, self.before)
        for i in self.code_products:
            # Rows inside pages: what follows works on as many heads as there are, not on those of a padded product.
            if i in self.contractions and _has_rows(program.index.nodes[i]):
                del self.contractions[i]
        self.code_products = {i: c for i, c in self.code_products.items() if i not in self.contractions}
        self.code_products = {i: c for i, c in self.code_products.items() if self._suits(c)}
        taken = {*self.contractions, *self.code_products}
        self.page_products = find_page_products(program.index, self.states, self.sizes, taken)
        taken |= self.page_products.keys()
        self.contractions |= find_contractions(program.index, self.states, taken, inexact=True)
        if wide:  # no query is exact
            self.code_products = {i: replace(c, exact=False) for i, c in self.code_products.items()}
        self.totals = find_totals(program.index, self.code_products)
        refined = program.index.refinement
        elsewhere = frozenset() if refined is None else refined.only
        found = {i: c for i, c in self.code_products.items() if i not in elsewhere}
        inside = [c for i, c in found.items() if rows_of(program.index.nodes[i], self.sizes) > 1]
        self.tokens = bool(inside or self.page_products.keys() - elsewhere)
        self.columns = self.tokens and all(
            by_columns(program.index, self.states, self.sizes, c) for c in inside
        )
        self.anchored = _met_by_rows(program.index, self.sizes)
        self.summed = _summed(program.index, self.states, self.anchored)
        self.writer = CodeEmitter(self.states, self.mask_text)

    def _suits(self, c: CodeProduct) -> bool:
        """Whether there are channels enough for a matrix product: a few of each row are multiplied and added faster."""
        few = c.channels(self.program.index, self.sizes) < LEAST
        return not few or by_columns(self.program.index, self.states, self.sizes, c)

    def index_args(self) -> list[str]:
        """Run-time arguments of both kernels, in order."""
        scratch = [f"t{i}_ptr" for i in self.schedule.stored]
        outs = [f"out{i}_ptr" for i in self.schedule.outputs]
        return [
            "q_ptr",
            "q_batch",
            "q_head",
            "table_ptr",
            "table_stride",
            "lengths_ptr",
            "budgets_ptr",
            "pool_pages",
            "max_pages",
            *self.state_args(),
            *self.seat_args(),
            *self.dense_mass_args(),
            *self.param_args(),
            *scratch,
            *(f"h{i}_ptr" for i in self.before),
            *outs,
        ]

    def source(self, e: Emitter, node: Node, env: Env) -> Tile:
        """Emit the load of a source node and return its tile."""
        g = self.geometry
        match node.op:
            case "q":
                axes = order([*env["head"].axes, *env["dim"].axes])
                mask = self.mask_text(axes, False)
                guard = "" if mask is None else f", mask={mask}, other=0.0"
                text = f"q_ptr + batch.to(tl.int64) * q_batch + (kv_head * {g.group} + {env['head'].to(axes)}) * q_head + ({env['dim'].to(axes)})"
                return e.bind(f"tl.load({text}{guard}).to(tl.float32)", axes, False)
            case "position":
                return e.bind(f"{env['page'].text}.to(tl.float32)", env["page"].axes, True)
            case "pages":
                return Tile("complete_f")
            case "length":
                return Tile("length_f")
            case "mass":
                axes = order([*env["page"].axes, *env["head"].axes])
                text = f"mass_ptr + {Tile('page_row', env['page'].axes).to(axes)} * {g.group} + ({env['head'].to(axes)})"
                return e.bind(f"tl.load({text}, mask={self.mask_text(axes, True)}, other=0.0)", axes, True)
            case "dense_mass":
                axes = order([*env["page"].axes, *env["head"].axes])
                head = f"(batch_row.to(tl.int64) * {g.group} + ({env['head'].to(axes)}))"
                text = f"dense_mass_ptr + {head} * dense_mass_pages + ({env['page'].to(axes)})"
                return e.bind(f"tl.load({text}, mask={self.mask_text(axes, True)}, other=0.0)", axes, True)
            case "param":
                return self.param(e, node, env, "kv_head")
            case "load":
                state = self.states[node.attr["name"]]
                names, paged = [n for n, _ in state.stored], not state.of_request
                row = Tile("page_row", env["page"].axes) if paged else Tile("seat_row")
                axes = order([*row.axes, *(a for n in names for a in env[n].axes)])
                text, axes = load_text(
                    state.name, state, self.sizes, row, [env[n] for n in names], self.mask_text(axes, paged)
                )
                return e.bind(text, axes, paged)
        raise unsupported(node, "no such source in this backend")

    def prologue(self, blocks: bool) -> list[str]:
        """Row, lengths, and the early exit of rows that need no scores."""
        lines = [
            f"batch_row = tl.program_id({1 if blocks else 0})",
            f"batch = batch_row // {self.geometry.kv_heads}",
            f"kv_head = batch_row % {self.geometry.kv_heads}",
            "length = tl.load(lengths_ptr + batch)",
            f"complete = length // {self.page_size}",
        ]
        nodes = [self.program.index.nodes[i] for i in self.program.index.streams]
        whole = any(
            n.op in ("topk", "refine") and n.attr.get("fraction", 1.0) == 1.0 for n in nodes
        )  # takes what fits by itself
        if whole and not self.program.index.writes and not self.program.needs_mass:
            # Rows that fit their budget attend to everything: nothing to score.
            lines += [
                "if tl.load(budgets_ptr + batch) * " + str(self.page_size) + " >= length:",
                "    return",
            ]
        elif crossover_unfit(self.program, Knobs()) is None:
            lines += [f"if tl.load(budgets_ptr + batch) >= {EVERYTHING}:", "    return"]
        lines += ["length_f = length.to(tl.float32)", "complete_f = complete.to(tl.float32)"]
        if self.program.request_states:
            lines.append("seat_row = kv_head * pool_seats + tl.load(seats_ptr + batch).to(tl.int64)")
        return lines

    def page_lines(self, axis: Axis) -> list[str]:
        """Index, mask and physical page of a block of pages."""
        return [
            f"{axis.index} = start + tl.arange(0, {axis.size})",
            f"page_ok = {axis.index} < complete",
            f"page = tl.load(table_ptr + batch.to(tl.int64) * table_stride + {axis.index}, mask=page_ok, other=0).to(tl.int64)",
            "page_row = kv_head * pool_pages + page",
            f"page_at = batch_row.to(tl.int64) * max_pages + {axis.index}",
        ]

    def scratch_pointer(self, i: int, env: Env, shift: str = "") -> tuple[str, tuple[Axis, ...]]:
        """Address of a scratch value, `[row, page, *dims]` fp32."""
        dims = [(n, e.resolve(self.sizes)) for n, e in self.program.index.nodes[i].type.dims if n != "page"]
        axes = order([*env["page"].axes, *(a for n, _ in dims for a in env[n].axes)])
        text = f"t{i}_ptr + ({Tile('page_at', env['page'].axes).to(axes)}{shift}) * {math.prod(s for _, s in dims)}"
        for n, (name, _) in enumerate(dims):
            text += f" + ({env[name].to(axes)}) * {math.prod(s for _, s in dims[n + 1 :])}"
        return text, axes

    def store_scratch(self, e: Emitter, i: int, value: Tile | None = None) -> None:
        """Keep a page value for a later loop or launch."""
        env = e.identity(self.program.index.nodes[i].type.dims)
        value = value if value is not None else e.emit(i, env)
        pointer, axes = self.scratch_pointer(i, env)
        lines = e.inner if e.inner is not None else e.outer
        lines.append(f"tl.store({pointer}, {full(value, axes)}, mask={self.mask_text(axes, True)})")

    def outputs(self, e: Emitter) -> None:
        """Emit the stores of scores and of carried states of pages."""
        lines = e.inner if e.inner is not None else e.outer
        graph, g = self.program.index, self.geometry
        values = [(i, e.value(i)) for i in self.schedule.scores]
        updates = [(name, e.value(i)) for name, i in self.program.writes_of("page")]
        for i, value in values:
            env = e.identity(graph.nodes[i].type.dims)
            axes = order([a for t in env.values() for a in t.axes])
            at = Tile("page_at", env["page"].axes).to(axes)
            if "head" in env:  # rows are kv_head x head
                at = f"(batch_row.to(tl.int64) * {g.group} + ({env['head'].to(axes)})) * max_pages + {env['page'].to(axes)}"
            lines.append(
                f"tl.store(out{i}_ptr + {at}, {full(value, axes)}, mask={self.mask_text(axes, True)})"
            )
        for i in self.schedule.refined:  # only candidates get a fine score
            assert e.page is not None
            lowest = f"tl.full([{e.page.size}], float('-inf'), tl.float32)"
            lines.append(f"tl.store(out{i}_ptr + page_at, {lowest}, mask=page_ok)")
        if updates or self.program.needs_mass:
            lines.append("tl.debug_barrier()")  # all lanes have read the old state
        for name, value in updates:
            state = self.states[name]
            env = e.identity(state.dims)
            row = Tile("page_row", (e.page,)) if e.page else Tile("page_row")
            axes = order([*row.axes, *(a for t in env.values() for a in t.axes)])
            lines += store_lines(
                name,
                state,
                self.sizes,
                row,
                list(env.values()),
                Tile(full(value, axes), axes),
                self.mask_text(axes, True),
            )
        if self.program.needs_mass:
            head = e.axis("head", g.group)
            assert e.page is not None
            axes = order([e.page, head])
            text = f"mass_ptr + {Tile('page_row', (e.page,)).to(axes)} * {g.group} + {Tile(head.index, (head,)).to(axes)}"
            zeros = f"tl.zeros([{', '.join(str(a.size) for a in axes)}], tl.float32)"
            lines.append(f"tl.store({text}, {zeros}, mask={self.mask_text(axes, True)})")

    def remember(self, e: Emitter) -> None:
        """Emit the stores of the request's states: by the last program that reads them."""
        values = [(self.states[name], e.value(i)) for name, i in self.program.writes_of("request")]
        if values:
            e.outer.append("tl.debug_barrier()")  # all lanes have read the old ones
        for state, value in values:
            env = e.identity(state.dims)
            axes = order([a for t in env.values() for a in t.axes])
            tile = Tile(full(value, axes), axes) if axes else literal(value)
            mask, row = self.mask_text(axes, False), Tile("seat_row")
            e.outer += store_lines(state.name, state, self.sizes, row, list(env.values()), tile, mask)

    def emitter(self, page: Axis | None, **options: Any) -> Emitter:
        """What writes the statements of a kernel that comes after the query's."""
        options = {"wide": self.wide, "summed": self.summed, **options}
        e = Emitter(self.program.index, self.sizes, self.source, self.channel_start, page, **options)
        e.before, e.load_before = self.before, lambda i, env: self.load_before(e, i, env)
        return e

    def load_before(self, e: Emitter, i: int, env: Env) -> Tile:
        """Read what the query's kernel left."""
        node = self.program.index.nodes[i]
        text, axes = self.before_pointer(i, env)
        mask = self.mask_text(axes, False)
        found = f"tl.load({text}{'' if mask is None else f', mask={mask}, other=0.0'})"
        return e.bind(f"{found} != 0" if node.type.kind == "bool" else found, axes, False)

    def before_pointer(self, i: int, env: Env) -> tuple[str, tuple[Axis, ...]]:
        """Address of a value of the query, `[row, *dims]` fp32."""
        dims = [(n, e.resolve(self.sizes)) for n, e in self.program.index.nodes[i].type.dims]
        axes = order([a for n, _ in dims for a in env[n].axes])
        text = f"h{i}_ptr + batch_row.to(tl.int64) * {math.prod(s for _, s in dims)}"
        for n, (name, _) in enumerate(dims):
            text += f" + ({env[name].to(axes)}) * {math.prod(s for _, s in dims[n + 1 :])}"
        return text, axes

    def query_text(self) -> str:
        """`query_kernel`: one program a row, for what depends on the query alone."""
        e = Emitter(self.program.index, self.sizes, self.source, self.channel_start, None)
        for i in self.before:
            env = e.identity(self.program.index.nodes[i].type.dims)
            value = e.emit(i, env)
            text, axes = self.before_pointer(i, env)
            mask = self.mask_text(axes, False)
            shown = f"({full(literal(value), axes)}).to(tl.float32)" if axes else literal(value).text
            e.outer.append(f"tl.store({text}, {shown}{'' if mask is None else f', mask={mask}'})")
        body = [*self.prologue(False), *self.axes_lines(e), *e.outer]
        return self.kernel("query_kernel", self.index_args(), [], body)

    def product(self, e: Emitter, i: int, env: Env) -> Tile | None:
        """A sum as a product with codes, where it is one."""
        if i in self.totals:
            found = self.writer.emit_total(e, self.totals[i], env)
            if found is not None:
                return found
        if i in self.page_products:
            return PageEmitter(self.writer).emit(e, self.page_products[i], env)
        product = self.code_products.get(i)
        return None if product is None else self.writer.emit(e, product, env)

    def score_text(self, block: int, channels: int) -> str:
        """`score_kernel`: one program for BLOCKS blocks of `block` pages of a row, `channels` a matrix product.

        Page ids are read a block ahead, the first before the length is known: the table has `max_pages` columns, and
        ids past the row's end are not followed. Latent rows take one block a program and no loop: what a loop does
        not change, such as the query's parts, stays in shared memory all at once (46 KB instead of 13).
        """
        axis = Axis("page", block)
        e = self.emitter(
            axis,
            contractions=self.contractions,
            products=self.product,
            channels=channels,
            anchored=self.anchored,
        )
        looped = not self.geometry.is_mla
        if looped:
            e.begin_loop()
        if self.schedule.barriers:
            for i in self.schedule.frontier:
                self.store_scratch(e, i)
        else:
            self.outputs(e)
        inner = e.end_loop() if looped else []
        if self.columns:
            inner = loads_first(inner)
        row, *rest = self.prologue(True)
        ids = "tl.load(table_row + {0}, mask={0} < max_pages, other=0)"
        head = [
            row,
            *rest[:2],
            f"first = tl.program_id(0) * ({block} * BLOCKS)",
            f"{axis.index} = first + tl.arange(0, {block})",
            "table_row = table_ptr + batch.to(tl.int64) * table_stride",
            f"page = {ids.format(axis.index)}",
            *rest[2:],
            "if first >= complete:",
            "    return",
        ]
        place = [
            f"page_ok = {axis.index} < complete",
            "page_row = kv_head * pool_pages + page.to(tl.int64)",
            f"page_at = batch_row.to(tl.int64) * max_pages + {axis.index}",
        ]
        if looped:
            block_lines = [
                f"{axis.index} = first + n * {block} + tl.arange(0, {block})",
                *place,
                *inner,
                f"page = {ids.format(f'({axis.index} + {block})')}",
            ]
            body = [*head, *self.axes_lines(e), *e.outer, "for n in range(0, BLOCKS):"]
            body += [f"    {line}" for line in block_lines]
        else:
            body = [*head, "tl.static_assert(BLOCKS == 1)", *place, *self.axes_lines(e), *e.outer]
        return self.kernel("score_kernel", self.index_args(), ["OPERAND", "BLOCKS"], body)


def _met_by_rows(graph: Graph, sizes: Mapping[str, int]) -> dict[int, int]:
    """Reductions to one number a page, or a page and head, that rows of another kind than were reduced then meet: the
    lanes of the longest of them."""
    met: dict[int, dict[str, int]] = {}
    for i in reversed(range(len(graph.nodes))):
        names = graph.nodes[i].type.names
        if "page" not in names or not set(names) <= {"page", "head"}:
            continue
        found: dict[str, int] = {}
        for j, user in enumerate(graph.nodes):
            if i in user.inputs:
                rows = {n: pow2(e.resolve(sizes)) for n, e in user.type.dims if n not in ("page", "head")}
                for name, lanes in [*rows.items(), *met.get(j, {}).items()]:
                    found[name] = max(lanes, found.get(name, 1))
        met[i] = found
    reduced = {i: graph.nodes[i].attr["dims"] for i in met if graph.nodes[i].op in REDUCE}
    sums = {
        i: max(met[i].values()) for i, dims in reduced.items() if met[i] and not met[i].keys() & set(dims)
    }
    # Of pages with few rows what rows leave behind, one number a page, hands their layout on to other sums just the same.
    short = [n for n in (_rows(node, sizes) for node in graph.nodes) if 1 < n < LEAST_ROWS]
    return dict.fromkeys(reduced, max(short)) | sums if short else sums


def _rows(node: Node, sizes: Mapping[str, int]) -> int:
    """Lanes of the rows of a page that a product with the query has a number for, 1 where it has none."""
    names = node.type.names
    if node.op != "sum" or not {"page", "head"} <= set(names) or len(names) != 3:
        return 1
    return next(pow2(e.resolve(sizes)) for n, e in node.type.dims if n not in ("page", "head"))


def _summed(graph: Graph, states: Mapping[str, StateDecl], met: Collection[int]) -> dict[Node, str]:
    """Products that are best summed where they were loaded, by the dimension: sums that rows meet, and those along numbers
    that lie side by side in memory with rows around them."""
    found = {}
    uses = Counter([j for node in graph.nodes for j in node.inputs] + [j for _, j in graph.writes])
    for i, node in enumerate(graph.nodes):
        if node.op != "sum" or len(node.attr["dims"]) > 1 or uses[node.inputs[0]] > 1:
            continue
        product = graph.nodes[node.inputs[0]]
        if product.op != "mul" or "page" not in node.type.names:
            continue
        (dim,) = node.attr["dims"]
        factors = [graph.nodes[j] for j in product.inputs]
        loads = [states[n.attr["name"]] for n in factors if n.op == "load"]
        beside = [s for s in loads if len(s.stored) > 1 and s.stored[-1][0] == dim and s.dtype not in PACKED]
        if i in met or any(s.dims[-1][0] != dim for s in beside):
            found[product] = dim
    return found


def loads_first(lines: list[str]) -> list[str]:
    """The statements of a loop, those that only read memory before all others.

    Codes that lie by columns go from memory to registers. A barrier keeps what is written after it from being read before
    it, and reductions across threads have barriers, so that loads among them would each be waited for.
    """
    made = {line.split(" = ", 1)[0] for line in lines if " = " in line}
    early: list[str] = []
    late: list[str] = []
    for line in lines:
        name, _, text = line.partition(" = ")
        reads = "tl.load(" in text and not made & set(re.findall(r"\bv\d+\b", text))
        (early if reads else late).append(line)
        if reads:
            made.discard(name)
    return early + late


def _has_rows(node: Node) -> bool:
    return any(n not in ("page", "head") for n in node.type.names)
