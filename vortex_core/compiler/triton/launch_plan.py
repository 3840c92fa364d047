"""The launches of a decode step of one sparse layer, what each moves and computes, and what keeps them apart.

Read from the schedule that code generation uses, so it says what will be launched, not what a model assumes. Bytes and
FLOPs count each input and output once. A selection shared by the kv heads of a request first pools their scores, with a few
small torch operators in one step called "pool".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vortex_core.compiler.interface import Geometry
from vortex_core.compiler.triton.generate import Module, generate
from vortex_core.ir.cost import (
    ACTIVATION_BYTES,
    INDEX_BYTES,
    SCORE_BYTES,
    graph_flops,
    kv_row_bytes,
    step_cost,
    symbols,
)
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Graph, Node, Program
from vortex_core.kernels.select.api import select_plan

_ENDS = {"topp": "the wanted mass", "threshold": "the threshold"}
MARK_BYTES = 1


@dataclass(frozen=True)
class Launch:
    """One kernel of a step.

    Attributes:
        does: its work, in words.
        why: what keeps it apart from the launch before it.
        bytes: read and written.
        flops: multiplications and additions, on whatever unit.
    """

    name: str
    does: str
    why: str
    bytes: float
    flops: float


@dataclass(frozen=True)
class Buffer:
    """Scratch that lives from the launch that writes it to the last that reads it; shared by all layers."""

    name: str
    bytes: int
    written_by: str
    read_by: str


@dataclass(frozen=True)
class Plan:
    """The step."""

    launches: tuple[Launch, ...]
    buffers: tuple[Buffer, ...]

    @property
    def scratch_bytes(self) -> int:
        """All scratch of selection. Attention's own partial results come on top, where it splits rows."""
        return sum(b.bytes for b in self.buffers)


def launch_plan(
    program: Program, knobs: Knobs, geometry: Geometry, *, batch: int, length: int, kv_bytes: float = 2.0
) -> Plan:
    """The launches for `batch` sequences of `length` tokens.

    Raises:
        VortexError: `VE010` for what the Triton backend cannot lower.
    """
    program = program.canonical()
    return _Planner(program, knobs, geometry, batch, length, kv_bytes).plan()


class _Planner:
    def __init__(
        self, program: Program, knobs: Knobs, geometry: Geometry, batch: int, length: int, kv_bytes: float
    ) -> None:
        self.program, self.knobs, self.geometry, self.batch = program, knobs, geometry, batch
        self.code: Module = generate(program, geometry, knobs.page_size)
        self.cost = step_cost(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
        self.kv_row = kv_row_bytes(geometry, kv_bytes)
        self.rows = batch * geometry.kv_heads
        self.complete = length // knobs.page_size
        self.total = math.ceil(length / knobs.page_size)
        self.lists = self.rows * (geometry.group if program.per_query_head else 1)
        self.streams = program.index.streams
        everything = program.selects_everything
        self.chosen = self.total if everything else knobs.pages(length, 0, geometry.layers)
        self.attended = min(length, self.chosen * knobs.page_size)

    def plan(self) -> Plan:
        """Launches in order, then the scratch between them."""
        launches = [*self._update(), *self._scoring(), *self._selections(), *self._attention()]
        return Plan(tuple(launches), tuple(self._buffers()))

    def _update(self) -> list[Launch]:
        if not self.code.update:
            return []
        does = f"forward_cache of pages completed by this step, on average one in {self.knobs.page_size} rows"
        flops = _flops(self.program.cache, self._sizes()) * self.rows / self.knobs.page_size
        return [Launch("update", does, "runs before scoring reads the states", self.cost.update_bytes, flops)]

    def _sizes(self) -> dict[str, int]:
        return {**symbols(self.geometry, self.knobs.page_size), "P": max(1, self.complete)}

    def _values(self, nodes: Mapping[int, int]) -> float:
        return float(4 * self.rows * self.complete * sum(nodes.values()))

    def _scoring(self) -> list[Launch]:
        graph, plan = self.program.index, self.code.schedule
        g = self.geometry
        query = self.batch * g.kv_heads * g.group * g.head_dim * ACTIVATION_BYTES
        table = self.rows * self.complete * INDEX_BYTES
        scores = len(plan.scores) * self.lists * self.complete * SCORE_BYTES
        frontier = self._values({i: self.code.scratch[i] for i in plan.frontier})
        before, after = _split_flops(graph, plan.level, self._sizes())
        found = []
        if self.code.score:
            count = len(plan.frontier)
            does = "scores of all complete pages, page-parallel" if not plan.barriers else (
                f"{count} value{'s' * (count != 1)} a page for the row launch, page-parallel"
            )  # fmt: skip
            why = "needs the states of pages just completed" if self.code.update else "first of the step"
            out = frontier if plan.barriers else scores
            moved = query + table + self.cost.state_bytes + out
            found.append(Launch("score", does, why, moved, before * self.rows))
        if self.code.rows:
            crossing = [
                n for i, n in enumerate(graph.nodes) if plan.level[i] and _crosses(graph, plan.level, i)
            ]
            why = "needs every page of a row first: " + ", ".join(map(_place, crossing))
            kept = self._values({i: self.code.scratch[i] for i in plan.kept_nodes})
            moved = frontier + scores + 2 * kept + (0 if self.code.score else self.cost.state_bytes + query)
            does = f"{plan.barriers} pass{'es' * (plan.barriers > 1)} over a row's pages, then the scores"
            found.append(Launch("rows", does, why, moved, after * self.rows))
        return found

    def _selections(self) -> list[Launch]:
        found = []
        read = float(self.lists * self.complete * SCORE_BYTES)
        marked = float(self.lists * self.total * MARK_BYTES)
        for n, i in enumerate(self.streams):
            node = self.program.index.nodes[i]
            if node.attr.get("share") is not None:
                does = f"{node.attr['share']} of the scores over kv heads (torch operators)"
                found.append(Launch("pool", does, "needs the scores of every head", 2 * read, 0))
            last = n == len(self.streams) - 1
            ends = f" up to {_ENDS[node.op]} or the budget" if node.op in _ENDS else ""
            into = "page ids in logical order" if last else "marks on pages"
            why = f"{_place(node)} orders a row's pages, so needs all of its scores"
            moved = read + (self.lists * self.chosen * INDEX_BYTES if last else 0)
            if len(self.streams) > 1:
                moved += marked * (1 if last or not n else 2)
                why += "; adds to the selection before it" if n else ""
            does = f"{node.op}: radix select{ends}, kept pages included, {into}"
            found.append(Launch("select", does, why, moved, 0))
        return found

    def _attention(self) -> list[Launch]:
        g = self.geometry
        heads = self.batch * g.kv_heads * g.group
        io = heads * (g.head_dim + g.value_dim) * ACTIVATION_BYTES + self.lists * self.chosen * INDEX_BYTES
        does = f"attention over {self.attended:,} tokens a row, split over programs"
        why = (
            "first of the step" if self.program.selects_everything else "its pages are the selection's result"
        )
        flops = 2.0 * heads * self.attended * (g.head_dim + g.value_dim)
        return [
            Launch("attend", does, why, self.cost.kv_bytes + io, flops),
            Launch(
                "merge",
                "partial results by log-sum-exp, where a row is split and its last part does not do it",
                "needs all parts of a row",
                0.0,
                0.0,
            ),
        ]

    def _buffers(self) -> list[Buffer]:
        plan, per_page = self.code.schedule, self.rows * self.complete
        first = "score" if self.code.score else "rows"
        found = [
            Buffer(f"value {i}", 4 * per_page * self.code.scratch[i], first, "rows") for i in plan.frontier
        ]
        found += [
            Buffer(f"value {i}", 4 * per_page * self.code.scratch[i], "rows", "rows")
            for i in plan.kept_nodes
            if i not in plan.frontier
        ]
        writer = "rows" if self.code.rows else "score"
        size = self.lists * self.complete * SCORE_BYTES
        found += [Buffer(f"score {i}", size, writer, "select") for i in plan.scores]
        if not self.streams:
            return found
        search = select_plan(self.complete, self.chosen)
        if search.segments > 1:  # rows too long for one program
            words = 2 * search.candidates + 2 * search.segments + 1
            found.append(Buffer("search", self.lists * words * INDEX_BYTES, "select", "select"))
        if len(self.streams) > 1:
            found.append(Buffer("marks", self.lists * self.total * MARK_BYTES, "select", "select"))
        width = min(self.total, self.chosen * len(self.streams))
        found.append(Buffer("page list", self.lists * (width + 1) * INDEX_BYTES, "select", "attend"))
        return found


def _flops(graph: Graph, sizes: Mapping[str, int]) -> float:
    return sum(graph_flops(graph, sizes))


def _split_flops(graph: Graph, level: tuple[int, ...], sizes: Mapping[str, int]) -> tuple[float, float]:
    """FLOPs of one row before and after its first barrier."""
    whole = _flops(graph, sizes)
    parallel = frozenset(i for i, at in enumerate(level) if at == 0)
    before = sum(graph_flops(graph, sizes, only=parallel))
    return before, whole - before


def _crosses(graph: Graph, level: tuple[int, ...], i: int) -> bool:
    return level[i] > max((level[j] for j in graph.nodes[i].inputs), default=0)


def _place(node: Node) -> str:
    return node.op if node.location is None else f"{node.op} (line {node.location.line})"
