"""What a decode step must move and compute: bytes by source, FLOPs, launches, and the time no kernel can beat.

Everything here is modelled from the program and the dimensions; nothing is measured. There is one account, the launches
of a sparse layer (`launch_costs`): a layer's cost is their sum, a model's the sum over its `LayerPlan`, and `explain`
prints the same launches. The model counts each byte once a launch (each input read once, each output written once),
takes the usable bandwidth of `GpuSpec` (measured where it was), and adds an assumed cost per kernel launch. For dense
decode of a Qwen3-1.7B shape on an H100 (batch 16, 32k tokens) it gives 21.2 ms a step, where SGLang with FlashAttention
3 was measured at 21.4 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Literal

from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.program import SCALED, Graph, GraphBuilder, Node, Program, StateDecl
from vortex_core.ir.query_work import query_work
from vortex_core.ir.schedule import per_page, schedule
from vortex_core.ir.types import STORED_BITS, packed_bytes

if TYPE_CHECKING:
    from vortex_core.specs import GpuSpec, ModelSpec

SCORE_BYTES = 4
INDEX_BYTES = 4
ACTIVATION_BYTES = 2
MARK_BYTES = 1
_SCALE_BYTES = 2

# "mass" is of a dense layer: what its pages receive, for layers after it that select by it.
Kind = Literal[
    "update", "query", "score", "rows", "candidates", "refine", "pool", "select", "attend", "merge", "residual", "mass"
]  # fmt: skip
# What a sparse layer does in a step: a leader's step that selects, a leader's step that keeps its last selection, a
# layer that follows its leader. Followers have no page states.
Role = Literal["selects", "keeps", "follows"]
_LAUNCHES_OF: Mapping[Role, frozenset[Kind]] = {
    "selects": frozenset(
        (
            "update",
            "query",
            "score",
            "rows",
            "candidates",
            "refine",
            "pool",
            "select",
            "attend",
            "merge",
            "residual",
        )
    ),
    "keeps": frozenset(("update", "attend", "merge")),
    "follows": frozenset(("attend", "merge")),
}


@dataclass(frozen=True)
class Cost:
    """What is moved and computed, for a whole batch: by a launch, a layer's decode step, or a mean of some.

    Attributes:
        query_bytes: queries read and outputs written.
        state_bytes: page states read, and written where carried.
        index_bytes: scores, page lists and page tables.
        kv_bytes: keys and values of the attended pages.
        update_bytes: forward_cache, spread over the steps between page completions.
        scratch_bytes: values of pages that the page-parallel launch leaves for the row launch.
        tensor_flops: contractions and attention.
        vector_flops: everything else.
        launches: kernels.
        density: tokens that a kv head reads over all tokens, of query heads that select apart what they read where
            they agree on nothing; 0 for a launch that does not attend.
    """

    query_bytes: float = 0.0
    state_bytes: float = 0.0
    index_bytes: float = 0.0
    kv_bytes: float = 0.0
    update_bytes: float = 0.0
    scratch_bytes: float = 0.0
    tensor_flops: float = 0.0
    vector_flops: float = 0.0
    launches: float = 0.0
    density: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, share: float) -> Cost:
        return Cost(*(getattr(self, f.name) * share for f in fields(self)))

    @property
    def bytes(self) -> float:
        """All bytes."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name.endswith("_bytes"))

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.tensor_flops + self.vector_flops


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


@dataclass(frozen=True)
class PageCost:
    """forward_cache for one completed page of one layer, all kv heads.

    Attributes:
        read_bytes: keys and values read.
        written_bytes: page states written, carried ones (their initial value) included.
        tensor_flops: contractions.
        vector_flops: everything else.
    """

    read_bytes: float
    written_bytes: float
    tensor_flops: float
    vector_flops: float

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.read_bytes + self.written_bytes

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.tensor_flops + self.vector_flops


@dataclass(frozen=True)
class ModelledDecode:
    """A modelled decode step of a whole model. Never a measurement.

    Attributes:
        tokens_per_second: over the batch.
        seconds_per_step: one token for every sequence.
        dense_tokens_per_second: the same model with full attention.
        speedup: over dense.
        bound_by: the largest part of the step: `kv`, `weights`, `states`, `launches`, `layers`, `compute`, `other`.
        density: share of tokens that a kv head reads, mean over layers.
        launches: kernels of attention, over all layers; a mean over steps where selections are kept for some.
        parts: seconds by part.
    """

    tokens_per_second: float
    seconds_per_step: float
    dense_tokens_per_second: float
    speedup: float
    bound_by: str
    density: float
    launches: float
    parts: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The largest part that a flow decides: neither `weights` nor `layers`, which every flow's step has."""
        return max(self.parts.keys() - {"weights", "layers"}, key=lambda part: (self.parts[part], part))


def state_bytes(state: StateDecl, sizes: Mapping[str, int]) -> int:
    """Bytes of one page's value of a state, per kv head, scales included."""
    shape = [extent.resolve(sizes) for _, extent in state.stored] or [1]
    rows = math.prod(shape[:-1])
    packed = rows * packed_bytes(state.dtype, shape[-1])
    return packed + (rows * _SCALE_BYTES if state.dtype in SCALED else 0)


def state_padding(state: StateDecl, sizes: Mapping[str, int]) -> float:
    """Bytes of `state_bytes` that hold nothing: rows of the packed dimension end on whole bytes."""
    shape = [extent.resolve(sizes) for _, extent in state.stored] or [1]
    bits = shape[-1] * STORED_BITS[state.dtype]
    return math.prod(shape[:-1]) * (packed_bytes(state.dtype, shape[-1]) - bits / 8)


def state_bytes_per_token(program: Program, knobs: Knobs, geometry: Geometry) -> float:
    """Memory that page states add to each cached token of one layer."""
    sizes = geometry.symbols(knobs.page_size)
    return geometry.kv_heads * sum(state_bytes(s, sizes) for s in program.states) / knobs.page_size


def kv_row_bytes(geometry: Geometry, kv_bytes: float) -> float:
    """Bytes of one cached token of one layer: key and value rows, or the one latent row of MLA."""
    channels = geometry.head_dim if geometry.is_mla else geometry.head_dim + geometry.value_dim
    return geometry.kv_heads * channels * kv_bytes


def attended_pages(program: Program, knobs: Knobs, length: int, layer: int = 0, layers: int = 1) -> int:
    """The most pages a list holds: those kept by rule, and each stream's fraction of what the budget leaves."""
    total = math.ceil(length / knobs.page_size)
    if program.selects_everything:
        return total
    budget = knobs.pages(length, layer, layers)
    kept = min(total, knobs.keep_first + knobs.keep_last)
    nodes = [program.index.nodes[i] for i in program.index.streams]
    parts = (round(10_000 * node.attr.get("fraction", 1.0)) for node in nodes)
    return min(total, kept + sum(-(-(budget - kept) * part // 10_000) for part in parts))


def candidate_pages(program: Program, knobs: Knobs, length: int, layer: int = 0, layers: int = 1) -> int:
    """Pages for which a selection in two stages computes its fine score, those kept by rule among them."""
    refined = program.index.refinement
    assert refined is not None
    total = math.ceil(length / knobs.page_size)
    kept = min(total, knobs.keep_first + knobs.keep_last)
    room = max(0, knobs.pages(length, layer, layers) - kept)
    return min(total, kept + refined.candidates * -(-room * round(10_000 * refined.fraction) // 10_000))


def page_cost(program: Program, knobs: Knobs, geometry: Geometry, kv_bytes: float = 2.0) -> PageCost:
    """Cost of the states of one completed page in one layer.

    Args:
        kv_bytes: bytes of one cached channel.
    """
    g, sizes = geometry, geometry.symbols(knobs.page_size)
    used = {n.op for n in program.cache.nodes}
    # MLA's values are channels of its keys: one row holds both.
    channels = max("k" in used, g.is_mla and "v" in used) * g.head_dim
    channels += ("v" in used and not g.is_mla) * g.value_dim
    tensor, vector = graph_flops(program.cache, sizes)
    return PageCost(
        read_bytes=g.kv_heads * knobs.page_size * channels * kv_bytes,
        written_bytes=g.kv_heads * sum(state_bytes(s, sizes) for s in program.states),
        tensor_flops=g.kv_heads * tensor,
        vector_flops=g.kv_heads * vector,
    )


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
    if program.states or program.needs_mass:
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
        for s in program.states
        if s.name in loaded or s.name in written
    )
    mass = SCORE_BYTES * g.group * (2 * program.needs_mass + program.reads_dense_mass)
    sources = Cost(
        query_bytes=heads * g.head_dim * ACTIVATION_BYTES,
        state_bytes=rows * complete * (stored + mass),
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
    if plan.barriers:
        done = Cost(
            scratch_bytes=2 * values(plan.kept_nodes),
            tensor_flops=rows * (tensor - before[0]),
            vector_flops=rows * (vector - before[1]),
            launches=1,
        )
        read = passed if plan.parallel else sources
        found.append(LaunchCost("rows", read + scores + done))
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


def graph_flops(
    graph: Graph, sizes: Mapping[str, int], only: frozenset[int] | None = None
) -> tuple[float, float]:
    """Tensor-core and vector FLOPs of one row's graph, or of some of its nodes."""

    def elements(node: Node) -> float:
        return math.prod(extent.resolve(sizes) for _, extent in node.type.dims)

    tensor = vector = 0.0
    for i, node in enumerate(graph.nodes):
        if only is not None and i not in only:
            continue
        size = max([elements(node), *(elements(graph.nodes[i]) for i in node.inputs)])
        contraction = (
            node.op == "sum" and graph.nodes[node.inputs[0]].op == "mul" and "dim" in node.attr["dims"]
        )
        if contraction:
            tensor += 2 * size
            vector -= size  # its products run with it
        else:
            vector += node.spec.flops * size
    return tensor, max(0.0, vector)


def kernel_seconds(cost: Cost, gpu: GpuSpec) -> float:
    """The larger of moving a launch's bytes and doing its arithmetic."""
    compute = cost.tensor_flops / gpu.bf16_flops + cost.vector_flops / gpu.fp32_flops
    return max(cost.bytes / gpu.usable_bandwidth, compute)


def roofline_seconds(launches: Iterable[Cost], gpu: GpuSpec) -> float:
    """Time of some launches, one after the other, with the assumed cost of each launch."""
    return sum(kernel_seconds(x, gpu) + x.launches * gpu.launch_overhead_assumed for x in launches)


def modelled_decode(
    program: Program, knobs: Knobs, model: ModelSpec, gpu: GpuSpec, batch: int, length: int
) -> ModelledDecode:
    """Modelled decode throughput of a whole model: weights once a step, every layer's attention, launches, and what a
    layer takes beside both (`GpuSpec.layer_overhead`)."""
    weights = model.weight_bytes_read_per_step(batch) / gpu.usable_bandwidth
    others = gpu.layer_overheads(model)
    dense = Knobs(page_size=knobs.page_size, budget="length")
    geometry, kv_bytes = model.geometry(), knobs.kv_bytes
    dense_layers = layer_launches(_dense(), dense, geometry, batch=batch, length=length)
    layers = layer_launches(program, knobs, geometry, batch=batch, length=length, kv_bytes=kv_bytes)
    dense_seconds = weights + others + sum(_parts(chain(*dense_layers), gpu).values())
    launches = list(chain(*layers))
    parts = {"weights": weights, "layers": others, **_parts(launches, gpu)}
    seconds = sum(parts.values())
    return ModelledDecode(
        tokens_per_second=batch / seconds,
        seconds_per_step=seconds,
        dense_tokens_per_second=batch / dense_seconds,
        speedup=dense_seconds / seconds,
        bound_by=max(parts, key=lambda k: parts[k]),
        density=sum(cost.density for cost in launches) / len(layers),
        launches=sum(cost.launches for cost in launches),
        parts=parts,
    )


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
            attention = tuple(x.cost for x in launches(_dense()))
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


def _parts(launches: Iterable[Cost], gpu: GpuSpec) -> dict[str, float]:
    """Seconds of launches by what they are spent on."""
    parts = dict.fromkeys(("kv", "states", "other", "launches", "compute"), 0.0)
    for cost in launches:
        parts["kv"] += cost.kv_bytes / gpu.usable_bandwidth
        parts["states"] += (cost.state_bytes + cost.update_bytes) / gpu.usable_bandwidth
        parts["other"] += (cost.query_bytes + cost.index_bytes + cost.scratch_bytes) / gpu.usable_bandwidth
        parts["compute"] += kernel_seconds(cost, gpu) - cost.bytes / gpu.usable_bandwidth
        parts["launches"] += cost.launches * gpu.launch_overhead_assumed
    return parts


def _dense() -> Program:
    """The dense program: attend to everything."""
    builder = GraphBuilder("index")
    return Program((), Graph(), builder.graph({}, builder.emit("everything")))
