"""The launches of a decode step, and what each moves and computes.

There is one account, the launches of a sparse layer (`launch_costs`): a layer's cost is their sum, a model's the sum
over its `LayerPlan`, and `explain` prints the same launches. Each byte counts once a launch: each input read once, each
output written once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, get_args

from vortex_core.geometry import Geometry
from vortex_core.ir.cost import (
    Cost,
    attended_pages,
    candidate_pages,
    graph_flops,
    kv_row_bytes,
    page_cost,
    state_bytes,
)
from vortex_core.ir.graph import Graph, GraphBuilder
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.program import Program
from vortex_core.ir.query_work import query_work
from vortex_core.ir.schedule import per_page, schedule

SCORE_BYTES = 4
INDEX_BYTES = 4
ACTIVATION_BYTES = 2
MARK_BYTES = 1

Kind = Literal[
    "update", "query", "score", "rows", "candidates", "refine", "pool", "select", "attend", "merge", "residual"
]  # fmt: skip
# What a sparse layer does in a step: a leader's step that selects, a leader's step that keeps its last selection, a
# layer that follows its leader. Followers have no page states.
Role = Literal["selects", "keeps", "follows"]
_LAUNCHES_OF: Mapping[Role, frozenset[Kind]] = {
    "selects": frozenset(get_args(Kind)),
    "keeps": frozenset(("update", "attend", "merge")),
    "follows": frozenset(("attend", "merge")),
}


@dataclass(frozen=True)
class LaunchCost:
    """One kernel of a sparse layer's decode step.

    Attributes:
        kind: its work.
        cost: what it moves and computes.
        node: of the index graph, where it is the launch of one selection.
    """

    kind: Kind
    cost: Cost
    node: int | None = None


def launch_costs(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    *,
    batch: int,
    length: int,
    kv_bytes: float = 2.0,
    layer: int = 0,
) -> tuple[LaunchCost, ...]:
    """The launches of one decode step of a layer that selects, in their order.

    Args:
        program: canonical.
        batch: sequences decoded together.
        length: tokens in every sequence.
        kv_bytes: bytes of one cached channel.
        layer: for budgets that depend on it.
    """
    g, sizes = geometry, geometry.symbols(knobs.page_size)
    heads = batch * g.q_heads
    rows = batch * g.kv_heads
    lists = rows * (g.group if program.per_query_head else 1)
    pages = attended_pages(program, knobs, length, layer, g.layers)
    tokens = min(length, pages * knobs.page_size)
    read = min(lists // rows * tokens, length)  # by a kv head: at most the union of its query heads' lists
    attention = Cost(
        query_bytes=heads * (g.head_dim + g.value_dim) * ACTIVATION_BYTES,
        index_bytes=lists * pages * INDEX_BYTES,
        kv_bytes=batch * read * kv_row_bytes(g, kv_bytes),
        tensor_flops=2.0 * heads * tokens * (g.head_dim + g.value_dim),
        launches=1,
        density=read / length,
    )
    found: list[LaunchCost] = []
    if program.page_states or program.needs_mass:
        page = page_cost(program, knobs, geometry, kv_bytes)
        share = batch / knobs.page_size  # of the sequences complete a page in a step
        found.append(
            LaunchCost(
                "update",
                Cost(
                    update_bytes=share * page.bytes,
                    tensor_flops=share * page.tensor_flops,
                    vector_flops=share * page.vector_flops,
                    launches=1,
                ),
            )
        )
    if not program.selects_everything:
        complete = length // knobs.page_size
        found += _scoring(program, g, sizes, heads=heads, rows=rows, lists=lists, complete=complete)
        if program.index.refinement is not None:
            among = candidate_pages(program, knobs, length, layer, g.layers)
            found += _refining(program, g, sizes, heads=heads, rows=rows, complete=complete, among=among)
        found += _selections(
            program, lists=lists, complete=complete, total=math.ceil(length / knobs.page_size), chosen=pages
        )
    found += [LaunchCost("attend", attention), LaunchCost("merge", Cost(launches=1))]
    if program.residual is not None:
        found.append(
            LaunchCost("residual", _residual(program, g, sizes, batch, length, pages, knobs.page_size))
        )
    return tuple(found)


def _residual(
    program: Program,
    g: Geometry,
    sizes: Mapping[str, int],
    batch: int,
    length: int,
    pages: int,
    page_size: int,
) -> Cost:
    """The entries of pages left out: masses and values read, outputs read and written again."""
    assert program.residual is not None
    complete = length // page_size
    left, heads = max(0, complete - pages), batch * g.q_heads
    return Cost(
        query_bytes=2 * heads * g.value_dim * ACTIVATION_BYTES,
        state_bytes=batch * g.kv_heads * left * state_bytes(program.state(program.residual.state), sizes),
        index_bytes=heads * left * SCORE_BYTES + batch * g.kv_heads * complete * INDEX_BYTES,
        tensor_flops=2.0 * heads * left * g.value_dim,
        launches=1,
    )


def recording_cost(geometry: Geometry, *, batch: int, length: int, page_size: int) -> Cost:
    """A dense layer that leaves the mass of its pages: log-sums by head and page, and two passes over them."""
    numbers = batch * geometry.q_heads * math.ceil(length / page_size)
    return Cost(index_bytes=5 * SCORE_BYTES * numbers, vector_flops=2 * numbers, launches=3)


def _scoring(
    program: Program,
    g: Geometry,
    sizes: Mapping[str, int],
    *,
    heads: int,
    rows: int,
    lists: int,
    complete: int,
) -> list[LaunchCost]:
    """Scores of all complete pages: in one launch, or in two values passed from one to the other."""
    graph = program.lowered.index
    plan = schedule(graph)
    written = {name for name, _ in graph.writes}
    loaded = {n.attr["name"] for i, n in enumerate(graph.nodes) if n.op == "load" and i in _scored(graph)}
    stored = sum(
        state_bytes(s, sizes) * (2 if s.name in written else 1)
        for s in program.page_states
        if s.name in loaded or s.name in written
    )
    remembered = rows * sum(state_bytes(s, sizes) for s in program.request_states)  # each is read and written
    mass = SCORE_BYTES * g.group * (2 * program.needs_mass + program.reads_dense_mass)
    sources = Cost(
        query_bytes=heads * g.head_dim * ACTIVATION_BYTES,
        state_bytes=rows * complete * (stored + mass) + remembered,
        index_bytes=rows * complete * INDEX_BYTES,
    )
    scores = Cost(index_bytes=len(plan.outputs) * lists * complete * SCORE_BYTES)

    def values(nodes: Iterable[int]) -> float:
        return 4.0 * rows * complete * sum(per_page(graph.nodes[i], sizes) for i in nodes)

    everything = {**sizes, "P": max(1, complete)}
    apart = frozenset() if graph.refinement is None else graph.refinement.only
    here = frozenset(range(len(graph.nodes))) - apart
    tensor, vector = graph_flops(graph, everything, only=here)
    passed = Cost(scratch_bytes=values(plan.frontier))
    found = []
    ready = sum(per_page(graph.nodes[i], sizes) for i in query_work(graph, sizes))
    if ready:
        found.append(LaunchCost("query", Cost(scratch_bytes=4.0 * rows * ready, launches=1)))
    before = (0.0, 0.0)
    if plan.parallel:
        at_once = frozenset(i for i in here if plan.level[i] == 0)
        before = graph_flops(graph, everything, only=at_once) if plan.barriers else (tensor, vector)
        done = Cost(tensor_flops=rows * before[0], vector_flops=rows * before[1], launches=1)
        found.append(LaunchCost("score", sources + (passed if plan.barriers else scores) + done))
    if plan.barriers or remembered:
        done = Cost(
            state_bytes=remembered,
            scratch_bytes=2 * values(plan.kept_nodes),
            tensor_flops=rows * (tensor - before[0]),
            vector_flops=rows * (vector - before[1]),
            launches=1,
        )
        if plan.barriers:
            done += (passed if plan.parallel else sources) + scores
        found.append(LaunchCost("rows", done))
    return found


def _refining(
    program: Program,
    g: Geometry,
    sizes: Mapping[str, int],
    *,
    heads: int,
    rows: int,
    complete: int,
    among: int,
) -> list[LaunchCost]:
    """The first of two stages: a list of candidates by the coarse score, and the fine score of these alone."""
    graph = program.lowered.index
    refined = graph.refinement
    assert refined is not None
    fine = graph.needed(refined.fine)
    loaded = {graph.nodes[i].attr["name"] for i in fine if graph.nodes[i].op == "load"}
    stored = sum(state_bytes(s, sizes) for s in program.states if s.name in loaded)
    if any(graph.nodes[i].op == "dense_mass" for i in fine):
        stored += SCORE_BYTES * g.group
    scored = min(among, complete)
    tensor, vector = graph_flops(graph, {**sizes, "P": max(1, scored)}, only=frozenset(fine))
    listing = Cost(index_bytes=rows * (complete * SCORE_BYTES + among * INDEX_BYTES), launches=1)
    scoring = Cost(
        query_bytes=heads * g.head_dim * ACTIVATION_BYTES,
        state_bytes=rows * scored * stored,
        index_bytes=rows * scored * (2 * INDEX_BYTES + SCORE_BYTES),
        tensor_flops=rows * tensor,
        vector_flops=rows * vector,
        launches=1,
    )
    return [LaunchCost("candidates", listing, refined.node), LaunchCost("refine", scoring, refined.node)]


def _scored(graph: Graph) -> frozenset[int]:
    """Nodes that scoring launches compute or read: what a residual's launch reads is not among them."""
    plan, seen = schedule(graph), set()
    todo = [*plan.scores, *(i for _, i in graph.writes)]
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            todo += graph.nodes[i].inputs
    return frozenset(seen)


def _selections(program: Program, *, lists: int, complete: int, total: int, chosen: int) -> list[LaunchCost]:
    """One launch a stream; those of a union meet as marks on pages, and the last writes the list."""
    found = []
    read = Cost(index_bytes=lists * complete * SCORE_BYTES)
    graph = program.lowered.index
    streams = graph.streams
    for n, i in enumerate(streams):
        if graph.nodes[i].attr.get("share") is not None:  # a reduction over heads, and a copy to each
            found.append(LaunchCost("pool", read * 2 + Cost(launches=2), i))
        last = n == len(streams) - 1
        moved = read + Cost(index_bytes=last * lists * chosen * INDEX_BYTES, launches=1)
        if len(streams) > 1:
            moved += Cost(index_bytes=lists * total * MARK_BYTES * (1 if last or not n else 2))
        found.append(LaunchCost("select", moved, i))
    return found


def step_cost(
    program: Program,
    knobs: Knobs,
    geometry: Geometry,
    *,
    batch: int,
    length: int,
    kv_bytes: float = 2.0,
    layer: int = 0,
    role: Role = "selects",
) -> Cost:
    """Cost of one decode step in one sparse layer: the sum over its launches.

    Args:
        program, batch, length, kv_bytes: as of `launch_costs`.
        layer: whose budget it has: a follower has its leader's.
        role: what the layer does in the step.
    """
    launches = launch_costs(
        program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes, layer=layer
    )
    return sum((x.cost for x in launches if x.kind in _LAUNCHES_OF[role]), Cost())


def layer_launches(
    program: Program, knobs: Knobs, geometry: Geometry, *, batch: int, length: int, kv_bytes: float = 2.0
) -> list[tuple[Cost, ...]]:
    """Costs of the launches of each layer in a decode step, as the layer plan has it.

    Where a leader selects at some steps only, a launch that selects counts for its share of the steps.
    """
    program = program.canonical()
    plan = LayerPlan(program, knobs, geometry.layers)
    launches = partial(
        launch_costs, knobs=knobs, geometry=geometry, batch=batch, length=length, kv_bytes=kv_bytes
    )

    @cache
    def of(row: int | None, leads: bool, records: bool) -> tuple[Cost, ...]:
        if row is None:
            attention = tuple(x.cost for x in launches(dense_program()))
            if not records:
                return attention
            mass = recording_cost(geometry, batch=batch, length=length, page_size=knobs.page_size)
            return (*attention, mass * (1.0 / knobs.reuse_steps))
        found = launches(program, layer=plan.budget_layers[row])
        if not leads:
            return tuple(x.cost for x in found if x.kind in _LAUNCHES_OF["follows"])
        share = 1.0 / knobs.reuse_steps
        return tuple(x.cost * (1.0 if x.kind in _LAUNCHES_OF["keeps"] else share) for x in found)

    rows = [None if leader is None else plan.budget_row(i) for i, leader in enumerate(plan.leader)]
    return [of(row, plan.leader[i] == i, i in plan.mass_layers) for i, row in enumerate(rows)]


def layer_costs(
    program: Program, knobs: Knobs, geometry: Geometry, *, batch: int, length: int, kv_bytes: float = 2.0
) -> list[Cost]:
    """Cost of each layer in a decode step, means over steps: the sums of `layer_launches`."""
    found = layer_launches(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
    return [sum(launches, Cost()) for launches in found]


def dense_program() -> Program:
    """The dense program: attend to everything."""
    builder = GraphBuilder("index")
    return Program((), Graph(), builder.graph({}, builder.emit("everything")))
