"""What is moved and computed: bytes by source and FLOPs, of a page's states, of cached tokens, of a graph.

Everything here is counted from the program and the dimensions; nothing is measured. `ir.launches` sums it up by the
launches of a decode step, `ir.modelled` says how long these take at best.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from vortex_core.geometry import Geometry
from vortex_core.ir.graph import Graph, Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import SCALED, Program, StateDecl
from vortex_core.ir.types import STORED_BITS, packed_bytes

_SCALE_BYTES = 2


@dataclass(frozen=True)
class Cost:
    """What is moved and computed, for a whole batch: by a launch, a layer's decode step, or a mean of some.

    Attributes:
        query_bytes: queries read and outputs written.
        state_bytes: states read, and written where carried.
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


def state_bytes(state: StateDecl, sizes: Mapping[str, int]) -> int:
    """Bytes of one page's or request's value of a state, per kv head, scales included."""
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
    return geometry.kv_heads * sum(state_bytes(s, sizes) for s in program.page_states) / knobs.page_size


def state_bytes_per_request(program: Program, knobs: Knobs, geometry: Geometry) -> int:
    """Memory that states of requests take in one layer, for each request that runs."""
    sizes = geometry.symbols(knobs.page_size)
    return geometry.kv_heads * sum(state_bytes(s, sizes) for s in program.request_states)


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
        written_bytes=g.kv_heads * sum(state_bytes(s, sizes) for s in program.page_states),
        tensor_flops=g.kv_heads * tensor,
        vector_flops=g.kv_heads * vector,
    )


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
        contraction = node.op == "sum" and _over_channels(graph.nodes[node.inputs[0]], node.attr["dims"])
        if contraction:
            tensor += 2 * size
            vector -= size  # its products run with it
        else:
            vector += node.spec.flops * size
    return tensor, max(0.0, vector)


def _over_channels(source: Node, dims: tuple[str, ...]) -> bool:
    """Whether a sum is one of products over channels, whatever they are called."""
    return source.op == "mul" and any(source.type.extent(d).symbol in ("D", "N", "R") for d in dims)
