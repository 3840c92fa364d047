"""Runs programs on small random sequences and compares what they select, up to ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from tests.sample_flows import turned
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV
from vortex_core.compiler.oracle import OracleFlow
from vortex_core.compiler.torch_backend import TorchFlow
from vortex_core.geometry import Geometry
from vortex_core.ir.graph import Node
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.page_list import PageList

PAGE = 8
GEOMETRY = Geometry(layers=1, kv_heads=2, group=3, head_dim=16, rope_dim=16, value_dim=16, rotary=turned(16))
KNOBS = Knobs(page_size=PAGE, budget="34", keep_first=1, keep_last=1, dense_layers=(0,))
LENGTHS = (1, 8, 9, 43, 72)


class Torch64(TorchFlow):
    """The vectorised backend in double precision: differs from the oracle by how it loops, not by rounding."""

    dtype = torch.float64


@dataclass(frozen=True)
class Data:
    """Paged KV, a block table and the queries of a few steps."""

    kv: LayerKV
    table: torch.Tensor
    queries: list[torch.Tensor]
    mass: torch.Tensor
    dense_mass: torch.Tensor
    pages: int


def data(seed: int, *, coarse: bool = False, geometry: Geometry = GEOMETRY, steps: int = 2) -> Data:
    """Random sequences. `coarse`: halves between -1 and 1 with constant channels and repeated pages, so that
    ties, zeros and divisions by zero are common."""
    g = torch.Generator().manual_seed(seed)
    width = -(-max(LENGTHS) // PAGE)
    pages = len(LENGTHS) * width + 2

    def draw(*shape: int) -> torch.Tensor:
        if coarse:
            return torch.randint(-2, 3, shape, generator=g).double() / 2
        return torch.randn(*shape, generator=g, dtype=torch.float64).float().double()

    table = torch.randperm(pages, generator=g)[: len(LENGTHS) * width].view(len(LENGTHS), width)
    shape = (geometry.kv_heads, pages, PAGE, geometry.head_dim)
    k, v = draw(*shape), draw(*shape[:-1], geometry.value_dim)
    if coarse:
        k[:, ::3] = k[:, :1, :1]  # every third page holds one key, again and again
        k[..., 1] = 0.0
    heads = geometry.kv_heads * geometry.group
    queries = [draw(len(LENGTHS), heads, geometry.head_dim) for _ in range(steps)]
    mass = torch.rand(heads, pages, generator=g)
    dense = torch.rand(len(LENGTHS), heads, width, generator=g)
    return Data(LayerKV(k, v), table, queries, mass, dense, pages)


Scores = list[dict[int, torch.Tensor]]


class Reference:
    """What the oracle selects for a program on some data; scores are computed when first needed."""

    def __init__(
        self, program: Program, d: Data, knobs: Knobs = KNOBS, geometry: Geometry = GEOMETRY
    ) -> None:
        self.program, self.data = program, d
        self._flow = OracleFlow(program, knobs, geometry)
        self.pages = run(self._flow, d)

    @cached_property
    def scored(self) -> list[tuple[PageList, Scores]]:
        """Selection and scores, by step; scores by sequence and node number."""
        return _steps(self._flow, self.data, scored=True)

    def disagreement(self, flow: CompiledFlow, tolerance: float) -> str:
        """Where a backend differs by more than ties: empty, or the first place in words."""
        theirs = run(flow, self.data)
        if all(_equal(a, b) for a, b in zip(self.pages, theirs, strict=True)):
            return ""
        return disagreement(self.program, self.data, self.scored, theirs, tolerance)


def run(flow: CompiledFlow, d: Data) -> list[PageList]:
    """What a flow selects at every step."""
    return [found for found, _ in _steps(flow, d)]


def run_oracle(flow: OracleFlow, d: Data) -> list[tuple[PageList, Scores]]:
    """The same, with the scores that decided, by sequence and node number."""
    return _steps(flow, d, scored=True)


def _equal(a: PageList, b: PageList) -> bool:
    if a.heads != b.heads or not torch.equal(a.counts, b.counts) or not torch.equal(a.lengths, b.lengths):
        return False
    real = torch.arange(a.page_ids.shape[-1]) < a.counts.unsqueeze(-1)
    return bool((a.page_ids == b.page_ids)[real].all())


def _steps(flow: CompiledFlow, d: Data, scored: bool = False) -> list[tuple[PageList, Scores]]:
    states = flow.new_states(d.pages, torch.device("cpu"), len(LENGTHS))
    complete = torch.cat([d.table[b, : n // PAGE] for b, n in enumerate(LENGTHS)])
    flow.update(states, d.kv, complete, 0)
    budgets = torch.tensor([flow.knobs.pages(n) for n in LENGTHS])
    view = BatchView(d.table, torch.tensor(LENGTHS), budgets, max(LENGTHS), dense_mass=d.dense_mass)
    steps = []
    for q in d.queries:
        scores: Scores = []
        if scored:
            assert isinstance(flow, OracleFlow)
            scores = [flow.scores(q, states, view, b) if n >= PAGE else {} for b, n in enumerate(LENGTHS)]
        found = flow.select(q, states, view, 0)
        if flow.program.needs_mass:
            flow.observe(states, found, _received(d, found, flow.geometry), 0)
        steps.append((found, scores))
    return steps


def _received(d: Data, found: PageList, geometry: Geometry) -> torch.Tensor:
    """Attention mass that depends on the page alone, so that a tie decided otherwise changes little."""
    rows = found.page_ids
    if found.heads == geometry.kv_heads:
        rows = rows.repeat_interleave(geometry.group, 1)
    return d.mass[torch.arange(rows.shape[1]).view(1, -1, 1), rows]


def disagreement(
    program: Program,
    d: Data,
    oracle: list[tuple[PageList, Scores]],
    other: list[PageList],
    tolerance: float,
) -> str:
    """Where `other` differs from the oracle by more than ties: empty, or the first place in words. Steps after
    one that a tie decided differently are not compared."""
    for step, ((found, scores), theirs) in enumerate(zip(oracle, other, strict=True)):
        if found.heads != theirs.heads:
            return f"step {step}: {found.heads} rows against {theirs.heads}"
        same = True
        for b, length in enumerate(LENGTHS):
            for row in range(found.heads):
                a, c = _chosen(found, b, row), _chosen(theirs, b, row)
                if a == c:
                    continue
                same = False
                logical = [d.table[b].tolist().index(p) for p in a ^ c]
                bad = [p for p in logical if not _is_tie(program, scores[b], row, p, length, tolerance)]
                if bad:
                    return f"step {step}, length {length}, row {row}: pages {sorted(bad)} of {sorted(a)} {sorted(c)}"
        if not same:
            return ""
    return ""


def _chosen(found: PageList, b: int, row: int) -> set[int]:
    return set(found.page_ids[b, row, : int(found.counts[b, row])].tolist())


def _is_tie(
    program: Program, scores: dict[int, torch.Tensor], row: int, page: int, length: int, tolerance: float
) -> bool:
    """Whether the page stands, for one of the program's selections, as near to the cut as rounding reaches."""
    for node in program.index.nodes:
        if node.op in ("topk", "topp", "threshold"):
            values = _row(scores[node.inputs[0]], row, node)
            if _near_cut(values, page, node, length, tolerance):
                return True
        if node.op == "refine":  # as good as another by the fine score, or some are by the coarse one
            coarse, fine = (_row(scores[i], row, node) for i in node.inputs)
            if any(_as_good(coarse, p, tolerance) for p in range(len(coarse))) or _as_good(
                fine, page, tolerance
            ):
                return True
    return False


def _as_good(values: list[float], page: int, tolerance: float) -> bool:
    """Whether another page scores as this one does."""
    if page >= len(values) or not math.isfinite(values[page]):
        return True
    slack = tolerance * max([1e-3, *(abs(v) for v in values if math.isfinite(v))])
    return any(abs(v - values[page]) <= slack for p, v in enumerate(values) if p != page)


def _row(score: torch.Tensor, row: int, node: Node) -> list[float]:
    if score.dim() == 3:  # [kv_head, page, head]
        heads = score.shape[2]
        return score[row // heads, :, row % heads].tolist()
    share = node.attr.get("share")
    if share is not None:
        return (score.amax(0) if share == "max" else score.mean(0)).tolist()
    return score[row].tolist()


def _near_cut(values: list[float], page: int, node: Node, length: int, tolerance: float) -> bool:
    top = 1.8e308
    clean = [-top if math.isnan(v) else min(max(v, -top), top) for v in values]
    total = -(-length // PAGE)
    budget = KNOBS.pages(length)
    candidates = [p for p in range(len(clean)) if KNOBS.keep_first <= p < total - KNOBS.keep_last]
    if page not in candidates:
        return False
    order = sorted(candidates, key=lambda p: (-clean[p], p))
    parts = round(node.attr.get("fraction", 1.0) * 10_000)
    kept = total - len([p for p in range(total) if KNOBS.keep_first <= p < total - KNOBS.keep_last])
    room = -(-max(0, budget - kept) * parts // 10_000)
    scale = max([abs(c) for c in clean if abs(c) < top] or [1.0])
    # A score's error grows with what was subtracted on the way to it, so tiny scores keep an absolute tolerance.
    slack = tolerance * max(scale, 1e-3)
    around = order[max(0, room - 1) : room + 1]
    if any(abs(clean[page] - clean[p]) <= slack for p in around):
        return True
    if node.op == "threshold":
        return abs(clean[page] - node.attr["at"]) <= slack
    if node.op == "topp":
        weights = [math.exp(clean[p] - clean[order[0]]) for p in order]
        before = sum(weights[: order.index(page)]) / sum(weights)
        equals = [p for p in order if abs(clean[p] - clean[page]) <= slack]
        mass = sum(weights[order.index(p)] for p in equals) / sum(weights)
        first = sum(weights[: min(order.index(p) for p in equals)]) / sum(weights)
        return abs(before - node.attr["p"]) <= 10 * tolerance or first <= node.attr["p"] <= first + mass
    return False
