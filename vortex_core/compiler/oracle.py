"""The oracle: every program's definition, in fp64, one sequence and one kv head at a time, in plain loops."""

from __future__ import annotations

import math
import sys

import torch

from vortex_core.compiler.evaluate import Evaluator, check_shapes, param_values
from vortex_core.compiler.interface import BatchView, LayerKV, StateStore
from vortex_core.compiler.rotary import with_rotary
from vortex_core.compiler.states import TorchStates
from vortex_core.compiler.torch_backend import LARGEST, value_rows
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import EVERYTHING
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.page_list import PageList


class OracleFlow:
    """One program, evaluated as written. Slow and plain on purpose."""

    dtype = torch.float64

    def __init__(self, program: Program, knobs: Knobs, geometry: Geometry) -> None:
        check_shapes(program, geometry, knobs.page_size)
        bound = with_rotary(program, geometry)
        self.program, self.knobs, self.geometry = program, knobs, geometry
        sizes = geometry.symbols(knobs.page_size)
        self.shapes = {s.name: tuple(e.resolve(sizes) for _, e in s.dims) for s in program.states}
        self._cache = Evaluator(bound.cache, geometry, knobs.page_size, self.dtype, contract=False)
        self._index = Evaluator(bound.index, geometry, knobs.page_size, self.dtype, contract=False)

        self._params = param_values(bound, torch.device("cpu"), self.dtype)
        self._masses: dict[int, list[torch.Tensor]] = {}  # of the newest selection, by sequence and kv head

    def _learned(self, layer: int, h: int) -> dict[str, torch.Tensor]:
        """Learned values of one layer and kv head, `[*dims]`."""
        return {n: x[layer if len(x) > 1 else 0][h if x.shape[1] > 1 else 0] for n, x in self._params.items()}

    def new_states(self, pages: int, device: torch.device, seats: int = 1) -> TorchStates:
        """States of one layer: the declared storage dtypes, because rounding them is part of the
        definition."""
        g = self.geometry
        return TorchStates(self.program, self.shapes, g.kv_heads, g.group, pages, device, seats)

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int) -> None:
        """forward_cache, page by page and head by head."""
        assert isinstance(states, TorchStates)
        for page in pages.tolist():
            v = value_rows(kv, torch.tensor([page]), self.geometry, self.dtype)
            for h in range(self.geometry.kv_heads):
                values = self._cache.run(
                    {"k": kv.k[h, page].to(self.dtype), "v": v[h, 0], **self._learned(layer, h)}
                )
                for name, i in self.program.cache.writes:
                    field = states.fields[name]
                    field.write(slice(h, h + 1), slice_of(page), values[i].expand(1, 1, *field.shape))
                for field in states.fields.values():
                    if field.decl.carried and not field.decl.of_request:
                        start = torch.full((1, 1, *field.shape), field.decl.init, dtype=self.dtype)
                        field.write(slice(h, h + 1), slice_of(page), start)
                if states.mass is not None:
                    states.mass[h, page] = 0.0

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        """forward_indexer, sequence by sequence."""
        assert isinstance(states, TorchStates)
        rows: list[list[list[int]]] = []
        for b in range(len(q)):
            rows.append(self._sequence(q[b], states, view, b, layer))
        heads = len(rows[0])
        longest = max(len(pages) for row in rows for pages in row)
        ids = torch.zeros(len(q), heads, longest, dtype=torch.int32)
        lengths = torch.zeros(len(q), heads, dtype=torch.int32)
        size = self.knobs.page_size
        for b, row in enumerate(rows):
            length = int(view.lengths[b])
            for r, pages in enumerate(row):
                ids[b, r] = view.block_table[b, 0]
                ids[b, r, : len(pages)] = view.block_table[b, pages]
                lengths[b, r] = sum(min(size, length - p * size) for p in pages)
        return PageList(ids, lengths, size, self._left_out(q, states, view, layer, rows))

    def _left_out(
        self, q: torch.Tensor, states: TorchStates, view: BatchView, layer: int, rows: list[list[list[int]]]
    ) -> torch.Tensor | None:
        """Log weights of the complete pages, `[batch, q_head, page]`; -inf for those of a row's list."""
        if self.program.residual is None:
            return None
        group, heads = self.geometry.group, self.geometry.q_heads
        found = torch.full((len(q), heads, view.block_table.shape[1]), -torch.inf, dtype=self.dtype)
        for b in range(len(q)):
            complete = int(view.lengths[b]) // self.knobs.page_size
            if not complete:
                continue
            for h in range(self.geometry.kv_heads):
                mass = self._masses[b][h]
                for j in range(group):
                    listed = rows[b][h if len(rows[b]) == self.geometry.kv_heads else h * group + j]
                    for page in set(range(complete)) - set(listed):
                        found[b, h * group + j, page] = mass[page, j]
        return found

    def merge_residual(
        self, out: torch.Tensor, lse: torch.Tensor, selected: PageList, states: StateStore, view: BatchView
    ) -> torch.Tensor:
        """See `CompiledFlow`: entry by entry."""
        assert isinstance(states, TorchStates) and self.program.residual is not None
        assert selected.left_out is not None
        field, merged = states.fields[self.program.residual.state], out.clone()
        for b in range(len(out)):
            pages = view.block_table[b, : int(view.lengths[b]) // self.knobs.page_size]
            for h in range(out.shape[1]):
                values = field.read(h // self.geometry.group, pages, self.dtype)
                mass = selected.left_out[b, h, : len(pages)].to(self.dtype)
                mass = torch.where(torch.isnan(mass), -torch.inf, mass.clamp(max=LARGEST))
                entries = torch.cat([lse[b, h].to(self.dtype).view(1), mass])
                weights = torch.softmax(entries, 0)
                rows = torch.cat([out[b, h].to(self.dtype).unsqueeze(0), values])
                if len(pages):
                    merged[b, h] = (weights @ rows).to(out.dtype)
        return merged

    def observe(self, states: StateStore, selected: PageList, mass: torch.Tensor, layer: int) -> None:
        """Store attention mass as the torch backend does; see `CompiledFlow.observe`."""
        assert isinstance(states, TorchStates) and states.mass is not None
        group = self.geometry.group
        for b in range(len(mass)):
            for hq in range(mass.shape[1]):
                row = hq // group if selected.heads == self.geometry.kv_heads else hq
                for n in range(int(selected.counts[b, row])):
                    states.mass[hq // group, selected.page_ids[b, row, n], hq % group] = mass[b, hq, n]

    def scores(
        self, q: torch.Tensor, states: StateStore, view: BatchView, b: int, layer: int = 0
    ) -> dict[int, torch.Tensor]:
        """Score values of sequence `b` by node number, `[kv_head, page(, head)]` in fp64. Reads only."""
        assert isinstance(states, TorchStates)
        found: dict[int, list[torch.Tensor]] = {}
        for h in range(self.geometry.kv_heads):
            for i, value in self._head(q[b], states, view, b, h, layer).items():
                found.setdefault(i, []).append(value)
        nodes = self.program.index.nodes
        wanted = {i for n in nodes for i in n.scores}
        if self.program.residual is not None:
            wanted.add(self.program.residual.mass)
        return {
            i: torch.stack(v)
            for i, v in found.items()
            if i in wanted and self.program.index.nodes[i].type.kind == "float"
        }

    def _head(
        self, q: torch.Tensor, states: TorchStates, view: BatchView, b: int, h: int, layer: int
    ) -> dict[int, torch.Tensor]:
        length = int(view.lengths[b])
        complete = length // self.knobs.page_size
        pages = view.block_table[b, :complete]
        group = self.geometry.group
        sources = {
            "q": q[h * group : (h + 1) * group].to(self.dtype),
            "position": torch.arange(complete, dtype=self.dtype),
            "pages": torch.tensor(float(complete), dtype=self.dtype),
            "length": torch.tensor(float(length), dtype=self.dtype),
            **self._learned(layer, h),
        }
        for name, field in states.fields.items():
            at = view.seats_of(states)[b] if field.decl.of_request else pages
            sources[f"load:{name}"] = field.read(h, at, self.dtype)
        if states.mass is not None:
            sources["mass"] = states.mass[h, pages].to(self.dtype)
        if self.program.reads_dense_mass:
            assert view.dense_mass is not None, "the step hands over what a dense layer attended to"
            heads = view.dense_mass[b, h * group : (h + 1) * group, :complete]
            sources["dense_mass"] = heads.T.to(self.dtype)
        return self._index.run(sources)

    def _sequence(
        self, q: torch.Tensor, states: TorchStates, view: BatchView, b: int, layer: int
    ) -> list[list[int]]:
        size, group = self.knobs.page_size, self.geometry.group
        length = int(view.lengths[b])
        complete, total = length // size, -(-length // size)
        forced = {p for p in range(total) if p < self.knobs.keep_first or p >= total - self.knobs.keep_last}
        per_head: list[dict[int, torch.Tensor]] = []
        if complete:
            per_head = [self._head(q, states, view, b, h, layer) for h in range(self.geometry.kv_heads)]
        graph = self.program.index

        def score_rows(i: int, share: str | None) -> list[list[float]]:
            if not complete:
                rows = self.geometry.kv_heads * (group if "head" in graph.nodes[i].type.names else 1)
                return [[] for _ in range(rows)]
            stacked = [v[i] for v in per_head]
            if graph.nodes[i].type.names == ("page", "head"):
                return [stacked[h][:, j].tolist() for h in range(len(stacked)) for j in range(group)]
            together = torch.stack(stacked)
            if share is not None:
                together = (together.amax(0) if share == "max" else together.mean(0)).expand_as(together)
            return [row.tolist() for row in together]

        def visit(i: int) -> list[set[int]]:
            node = graph.nodes[i]
            if node.op == "everything":
                return [set(range(total)) for _ in range(self.geometry.kv_heads)]
            if node.op == "residual":
                return visit(node.inputs[0])
            if node.op == "union":
                left, right = visit(node.inputs[0]), visit(node.inputs[1])
                if len(left) != len(right):  # a per-kv-head operand stands for all its query heads
                    raise AssertionError("union of unlike selections")
                return [x | y for x, y in zip(left, right, strict=True)]
            parts = round(
                node.attr.get("fraction", 1.0) * 10_000
            )  # a whole number: 0.55 of 100 is 55, not 56
            room = -(-max(0, int(view.budgets[b]) - len(forced)) * parts // 10_000)
            if node.op == "refine":
                coarse, fine = (score_rows(j, None) for j in node.inputs)
                found = []
                for cheap, dear in zip(coarse, fine, strict=True):
                    candidates = choose("topk", {}, cheap, forced, room * node.attr["candidates"])
                    others = set(range(complete)) - candidates
                    found.append(forced | choose("topk", {}, dear, forced | others, room))
                return found
            return [
                forced | choose(node.op, node.attr, scores, forced, room)
                for scores in score_rows(node.inputs[0], node.attr.get("share"))
            ]

        assert graph.result is not None
        chosen = visit(graph.result)
        if int(view.budgets[b]) >= EVERYTHING:
            chosen = [set(range(total)) for _ in chosen]
        if self.program.residual is not None:  # before states are carried on
            self._masses[b] = [values[self.program.residual.mass] for values in per_head]
        if complete:
            self._carry(states, per_head, view, b, complete)
        return [sorted(pages) for pages in chosen]

    def _carry(
        self,
        states: TorchStates,
        per_head: list[dict[int, torch.Tensor]],
        view: BatchView,
        b: int,
        complete: int,
    ) -> None:
        pages = view.block_table[b, :complete]
        for name, i in self.program.index.writes:
            field = states.fields[name]
            for h, values in enumerate(per_head):
                value = values[i]
                if field.decl.of_request:
                    seat = view.seats_of(states)[b : b + 1]
                    field.write(slice(h, h + 1), seat, value.expand(1, 1, *field.shape))
                    continue
                if "page" not in self.program.index.nodes[i].type.names:
                    value = value.unsqueeze(0)
                field.write(slice(h, h + 1), pages, value.expand(complete, *field.shape).unsqueeze(0))
        if states.mass is not None:
            states.mass[:, pages] = 0.0


def slice_of(page: int) -> torch.Tensor:
    """One page as an index that keeps the axis."""
    return torch.tensor([page])


def choose(op: str, attrs: dict[str, float], scores: list[float], forced: set[int], room: int) -> set[int]:
    """The definition of selection: candidates in the total order (score, then lower page), up to `room`."""
    top = sys.float_info.max
    clean = {
        p: -top if math.isnan(s) else min(max(s, -top), top) for p, s in enumerate(scores) if p not in forced
    }
    order = sorted(clean, key=lambda p: (-clean[p], p))
    if op == "threshold":
        order = [p for p in order if clean[p] >= attrs["at"]]
    if op == "topp" and order:
        weights = [math.exp(clean[p] - clean[order[0]]) for p in order]
        whole, before, kept = sum(weights), 0.0, []
        for p, w in zip(order, weights, strict=True):
            if before < attrs["p"]:
                kept.append(p)
            before += w / whole
        order = kept
    return set(order[:room])


class OracleBackend:
    """Computes every sequence and head by itself in fp64. What it computes is what a program means."""

    name = "oracle"
    captures = False

    def unfit(self, device: torch.device) -> str | None:
        """It is the definition, in fp64 and sequence by sequence."""
        return "it is what other backends are tested by, not one to serve with"

    def compile(self, program: Program, knobs: Knobs, geometry: Geometry) -> OracleFlow:
        """Evaluates the program as given, not its canonical form, so that canonicalising is itself
        testable."""
        return OracleFlow(program, knobs, geometry)
