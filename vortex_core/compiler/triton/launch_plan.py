"""The launches of a decode step of one sparse layer, what each moves and computes, and what keeps them apart.

The launches, their bytes and FLOPs are the cost model's (`ir.launches.launch_costs`); here they are put in words, with
the scratch that code generation gives them. A selection shared by the kv heads of a request first pools their scores,
with a few small torch operators in one step called "pool".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vortex_core.compiler.triton.generate import Module, generate
from vortex_core.geometry import Geometry
from vortex_core.ir.cost import Cost, attended_pages, candidate_pages
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.launches import INDEX_BYTES, MARK_BYTES, SCORE_BYTES, LaunchCost, launch_costs
from vortex_core.ir.program import Program
from vortex_core.kernels.select.api import select_plan

_ENDS = {"topp": "the wanted mass", "threshold": "the threshold"}


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a decode step, with what it reads, writes and computes.

    Attributes:
        does: its work, in words.
        why: what keeps it apart from the launch before it.
        cost: what it moves and computes.
    """

    name: str
    does: str
    why: str
    cost: Cost

    @property
    def bytes(self) -> float:
        """Bytes that the launch reads and writes."""
        return self.cost.bytes

    @property
    def flops(self) -> float:
        """Multiplications and additions, on whatever unit."""
        return self.cost.flops


@dataclass(frozen=True)
class Buffer:
    """Scratch that lives from the launch that writes it to the last that reads it; shared by all layers."""

    name: str
    bytes: int
    written_by: str
    read_by: str


@dataclass(frozen=True)
class Plan:
    """The launches of one decode step and the buffers between them."""

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
        VortexError: `VE050` for what the Triton backend cannot lower.
    """
    program = program.canonical()
    return _Planner(program, knobs, geometry, batch, length, kv_bytes).plan()


class _Planner:
    def __init__(
        self, program: Program, knobs: Knobs, geometry: Geometry, batch: int, length: int, kv_bytes: float
    ) -> None:
        self.program, self.knobs = program, knobs
        self.code: Module = generate(program, geometry, knobs.page_size)
        self.costs = launch_costs(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
        self.rows, self.group = batch * geometry.kv_heads, geometry.group
        self.complete = length // knobs.page_size
        self.total = math.ceil(length / knobs.page_size)
        self.lists = self.rows * (geometry.group if program.per_query_head else 1)
        self.streams = self.code.graph.streams
        refined = self.code.graph.refinement
        self.among = 0 if refined is None else candidate_pages(program, knobs, length, 0, geometry.layers)
        self.chosen = self.total if program.selects_everything else knobs.pages(length, 0, geometry.layers)
        self.attended = min(
            length, attended_pages(program, knobs, length, 0, geometry.layers) * knobs.page_size
        )

    def plan(self) -> Plan:
        """Launches in order, then the scratch between them."""
        return Plan(tuple(map(self._worded, self.costs)), tuple(self._buffers()))

    def _worded(self, launch: LaunchCost) -> Launch:
        does, why = self._words(launch)
        return Launch(launch.kind, does, why, launch.cost)

    def _words(self, launch: LaunchCost) -> tuple[str, str]:
        """What a launch does, and what keeps it apart from the one before it."""
        plan = self.code.schedule
        match launch.kind:
            case "update":
                share = f"on average one in {self.knobs.page_size} rows"
                return (
                    f"forward_cache of pages completed by this step, {share}",
                    "runs before scoring reads the states",
                )
            case "query":
                count = len(self.code.before)
                return (
                    f"{count} value{'s' * (count != 1)} of the query alone, once a row",
                    "needs the states of pages just completed" if self.code.update else "first of the step",
                )
            case "score":
                count = len(plan.frontier)
                does = "scores of all complete pages, page-parallel" if not plan.barriers else (
                    f"{count} value{'s' * (count != 1)} a page for the row launch, page-parallel"
                )  # fmt: skip
                return (
                    does,
                    "needs the query's values" if self.code.before
                    else "needs the states of pages just completed" if self.code.update else "first of the step",
                )  # fmt: skip
            case "rows":
                graph = self.code.graph
                crossing = [
                    n for i, n in enumerate(graph.nodes) if plan.level[i] and _crosses(graph, plan.level, i)
                ]
                return (
                    f"{plan.barriers} pass{'es' * (plan.barriers > 1)} over a row's pages, then the scores",
                    "needs every page of a row first: " + ", ".join(map(_place, crossing)),
                )
            case "candidates":
                times = self.code.graph.refinement.candidates if self.code.graph.refinement else 0
                return (
                    f"{self.among:,} candidates a row, {times} for each page of the budget: radix select",
                    "orders a row's pages by the coarse score, so needs all of them",
                )
            case "refine":
                return (
                    "fine scores of candidates alone, candidate-parallel",
                    "needs the candidates of its row",
                )
            case "pool" | "select":
                assert launch.node is not None
                return self._selection(launch, launch.node)
            case "attend":
                everything = self.program.selects_everything
                return (
                    f"attention over {self.attended:,} tokens a row, split over programs",
                    "first of the step" if everything else "its pages are the selection's result",
                )
            case "merge":
                return (
                    "partial results by log-sum-exp, where a row is split and its last part does not do it",
                    "needs all parts of a row",
                )
            case "residual":
                return (
                    "every complete page that was left out, as one entry of its mass and its value",
                    "needs the log-sum-exp of the whole list",
                )

    def _selection(self, launch: LaunchCost, i: int) -> tuple[str, str]:
        node = self.code.graph.nodes[i]
        if launch.kind == "pool":
            return (
                f"{node.attr['share']} of the scores over kv heads (torch operators)",
                "needs the scores of every head",
            )
        ends = f" up to {_ENDS[node.op]} or the budget" if node.op in _ENDS else ""
        into = "page ids in logical order" if i == self.streams[-1] else "marks on pages"
        why = f"{_place(node)} orders a row's pages, so needs all of its scores"
        why += "; adds to the selection before it" if i != self.streams[0] else ""
        return f"{node.op}: radix select{ends}, kept pages included, {into}", why

    def _buffers(self) -> list[Buffer]:
        plan, per_page = self.code.schedule, self.rows * self.complete
        first = "score" if self.code.score else "rows"
        found = [
            Buffer(f"query {i}", 4 * self.rows * n, "query", "score") for i, n in self.code.before.items()
        ]
        found += [
            Buffer(f"value {i}", 4 * per_page * self.code.scratch[i], first, "rows") for i in plan.frontier
        ]
        found += [
            Buffer(f"value {i}", 4 * per_page * self.code.scratch[i], "rows", "rows")
            for i in plan.kept_nodes
            if i not in plan.frontier
        ]
        writer = "rows" if self.code.rows else "score"
        size = self.lists * self.complete * SCORE_BYTES
        ranked = [
            i for i in plan.scores if self.code.graph.residual is None or i != self.code.graph.residual.mass
        ]
        readers = (
            {} if self.code.graph.refinement is None else {self.code.graph.refinement.coarse: "candidates"}
        )
        found += [Buffer(f"score {i}", size, writer, readers.get(i, "select")) for i in ranked]
        if self.code.graph.residual is not None:
            heads = self.rows * self.group
            found.append(Buffer("left out", heads * self.complete * SCORE_BYTES, writer, "residual"))
        if self.among:
            found.append(Buffer("fine score", size, "refine", "select"))
            found.append(
                Buffer("candidates", self.rows * (self.among + 1) * INDEX_BYTES, "candidates", "refine")
            )
        if not self.streams:
            return found
        search = select_plan(self.complete, self.chosen)
        if search.segments > 1:  # rows too long for one program
            words = 2 * search.candidates + 2 * search.segments + 1
            found.append(Buffer("search", self.lists * words * INDEX_BYTES, "select", "select"))
        if search.sift:
            words = 2 * search.segments * search.sift
            found.append(Buffer("sifted pages", self.lists * words * INDEX_BYTES, "select", "select"))
        if len(self.streams) > 1:
            found.append(Buffer("marks", self.lists * self.total * MARK_BYTES, "select", "select"))
        width = min(self.total, self.chosen * len(self.streams))
        found.append(Buffer("page list", self.lists * (width + 1) * INDEX_BYTES, "select", "attend"))
        return found


def _crosses(graph: Graph, level: tuple[int, ...], i: int) -> bool:
    return level[i] > max((level[j] for j in graph.nodes[i].inputs), default=0)


def _place(node: Node) -> str:
    return node.op if node.location is None else f"{node.op} (line {node.location.line})"
