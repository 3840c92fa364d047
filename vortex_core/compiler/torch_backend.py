"""The vectorised torch backend: the default on CPU, and the reference speed on any device."""

from __future__ import annotations

from dataclasses import replace

import torch

from vortex_core.compiler.evaluate import Evaluator, align, check_shapes, param_values
from vortex_core.compiler.interface import BatchView, LayerKV, StateStore
from vortex_core.compiler.rotary import with_rotary
from vortex_core.compiler.selection import evaluate_selection, page_list
from vortex_core.compiler.states import Field, TorchStates
from vortex_core.geometry import Geometry
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.program import Program
from vortex_core.page_list import PageList

LARGEST = 1.0e30  # of a log weight; infinities count as it, NaN as no weight


class TorchFlow:
    """One program as batched torch code, computing in fp32."""

    dtype = torch.float32

    def __init__(self, program: Program, knobs: Knobs, geometry: Geometry) -> None:
        check_shapes(program, geometry, knobs.page_size)
        self._bound = bound = with_rotary(program, geometry)
        self.program = program
        self.knobs = knobs
        self.geometry = geometry
        sizes = geometry.symbols(knobs.page_size)
        self.shapes = {s.name: tuple(e.resolve(sizes) for _, e in s.dims) for s in program.states}
        self._cache = Evaluator(bound.cache, geometry, knobs.page_size, self.dtype, contract=True)
        self._index = Evaluator(bound.index, geometry, knobs.page_size, self.dtype, contract=True)
        # Nodes of the index graph whose values the selection ranks, and what weighs the pages it leaves out.
        ranked = {i for n in program.index.nodes for i in n.scores}
        self.scores = sorted(ranked | ({program.residual.mass} if program.residual else set()))
        self._params: dict[torch.device, dict[str, torch.Tensor]] = {}
        self._needs_pages = bool(self.scores or program.index.writes)

    def new_states(self, pages: int, device: torch.device, seats: int = 1) -> TorchStates:
        """States of one layer for `pages` physical pages and `seats` requests."""
        g = self.geometry
        return TorchStates(self.program, self.shapes, g.kv_heads, g.group, pages, device, seats)

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int | torch.Tensor) -> None:
        """forward_cache for complete physical `pages`, all kv heads at once. `layer`: one, or each page's own."""
        assert isinstance(states, TorchStates)
        if not len(pages) or not (self.program.page_states or states.mass is not None):
            return
        sources = {n: x.transpose(0, 1) for n, x in self._of_layer(layer, kv.k.device).items()}
        used = {n.op for n in self.program.cache.nodes}
        if "k" in used:
            sources["k"] = kv.k[:, pages].to(self.dtype)
        if "v" in used:
            sources["v"] = value_rows(kv, pages, self.geometry, self.dtype)
        values = self._cache.run(sources)
        for name, i in self.program.cache.writes:
            field = states.fields[name]
            target = (self.geometry.kv_heads, len(pages), *field.shape)
            field.write(slice(None), pages, values[i].expand(target))
        for field in states.fields.values():
            if field.decl.carried and not field.decl.of_request:
                start = torch.full((self.geometry.kv_heads, len(pages), *field.shape), field.decl.init)
                field.write(slice(None), pages, start.to(field.data.device))
        if states.mass is not None:
            states.mass[:, pages] = 0.0

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        """forward_indexer for one decode step. `q`: `[batch, q_head, dim]`."""
        scores = self.score(q, states, view, layer)
        found = page_list(self.choose(scores, view), view, self.knobs.page_size)
        if self.program.residual is None:
            return found
        mass = scores[self.program.residual.mass].transpose(-1, -2).flatten(1, 2)
        return replace(found, left_out=mass.float())

    def merge_residual(
        self, out: torch.Tensor, lse: torch.Tensor, selected: PageList, states: StateStore, view: BatchView
    ) -> torch.Tensor:
        """See `CompiledFlow`."""
        assert isinstance(states, TorchStates) and self.program.residual is not None
        return merge_left_out(
            out, lse, selected, states.fields[self.program.residual.state], view, self.dtype
        )

    def score(
        self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int | torch.Tensor
    ) -> dict[int, torch.Tensor]:
        """The first half of `select`, in which budgets play no part: score values by node number.

        Several queries over the same sequences take one more axis in front, of `q` and of `view.lengths`:
        `[step, batch, q_head, dim]`. What depends on pages alone is then computed once for all of them.

        Args:
            layer: of all sequences, or each one's own: they may be of different layers, whose pages lie in one store.
        """
        assert isinstance(states, TorchStates)
        g, size = self.geometry, self.knobs.page_size
        if not self._needs_pages:
            return {}
        width = view.max_length // size
        if not width:
            return self._empty(q)
        complete = view.lengths // size
        valid = (torch.arange(width, device=q.device) < complete.unsqueeze(-1)).unsqueeze(-2)
        sources = self._sources(q, states, view, complete, width)
        sources |= self._of_layer(layer, q.device)
        values = self._index.run(sources, valid)
        self._write(states, values, view, valid, width)
        for i in self.scores:  # a score that is the same for every row was computed once
            shape = (width, g.group) if self._per_head(i) else (width,)
            values[i] = values[i].expand(*q.shape[:-2], g.kv_heads, *shape)
        return values

    def choose(self, scores: dict[int, torch.Tensor], view: BatchView) -> torch.Tensor:
        """The second half of `select`: a mask over logical pages, bool `[batch, kv or query head, page]`."""
        complete = view.lengths // self.knobs.page_size
        return evaluate_selection(
            self.program.index, scores, view, self.knobs, complete, self.geometry.kv_heads
        )

    def observe(self, states: StateStore, selected: PageList, mass: torch.Tensor, layer: int) -> None:
        """Keep the attention mass of a step: pages not attended received none."""
        assert isinstance(states, TorchStates) and states.mass is not None
        g = self.geometry
        batch = mass.shape[0]
        for b in range(batch):  # sequences never share pages here, so each row owns its entries
            for h in range(g.kv_heads):
                for j in range(g.group):
                    row = h if selected.heads == g.kv_heads else h * g.group + j
                    count = int(selected.counts[b, row])
                    states.mass[h, selected.page_ids[b, row, :count], j] = mass[b, h * g.group + j, :count]

    def _of_layer(self, layer: int | torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        """Learned values of one layer, `[1, kv_head, *dims]`, or of a tensor of layers, `[row, kv_head, *dims]`."""
        if not self._bound.params:
            return {}
        if device not in self._params:
            self._params[device] = param_values(self._bound, device, self.dtype)
        rows = torch.tensor([layer], device=device) if isinstance(layer, int) else layer
        return {n: x[rows] if len(x) > 1 else x for n, x in self._params[device].items()}

    def _sources(
        self, q: torch.Tensor, states: TorchStates, view: BatchView, complete: torch.Tensor, width: int
    ) -> dict[str, torch.Tensor]:
        g = self.geometry
        table = view.block_table[:, :width]
        sources = {
            "q": q.to(self.dtype).unflatten(-2, (g.kv_heads, g.group)),
            "position": torch.arange(width, dtype=self.dtype, device=q.device),
            "pages": complete.to(self.dtype).unsqueeze(-1),
            "length": view.lengths.to(self.dtype).unsqueeze(-1),
        }
        entries = _entries(table, g.kv_heads, states.pages)
        for name, field in states.fields.items():
            at = entries
            if field.decl.of_request:
                at = _entries(view.seats_of(states).unsqueeze(-1), g.kv_heads, states.seats).squeeze(-1)
            sources[f"load:{name}"] = field.rows(at, self.dtype)
        if states.mass is not None:
            sources["mass"] = states.mass[:, table].transpose(0, 1).to(self.dtype)
        if self.program.reads_dense_mass:
            assert view.dense_mass is not None, "the step hands over what a dense layer attended to"
            heads = view.dense_mass[..., :width].unflatten(-2, (g.kv_heads, g.group))
            sources["dense_mass"] = heads.transpose(-1, -2).to(self.dtype)
        return sources

    def _write(
        self,
        states: TorchStates,
        values: dict[int, torch.Tensor],
        view: BatchView,
        valid: torch.Tensor,
        width: int,
    ) -> None:
        if not self.program.index.writes and states.mass is None:
            return
        g = self.geometry
        real = valid.squeeze(-2)
        pages = view.block_table[:, :width][real]
        scored = real.any(-1)
        for name, i in self.program.writes_of("request"):
            field = states.fields[name]
            value = values[i].expand(len(real), g.kv_heads, *field.shape)
            field.write(slice(None), view.seats_of(states)[scored], value[scored].transpose(0, 1))
        for name, i in self.program.writes_of("page"):
            field = states.fields[name]
            names = self.program.index.nodes[i].type.names
            target = ("page", *(n for n, _ in field.decl.dims))
            value = align(values[i], names, target)
            value = value.expand(len(real), g.kv_heads, width, *field.shape)
            field.write(slice(None), pages, value.transpose(0, 1)[:, real])
        if states.mass is not None:  # what this step does not attend must read as 0 at the next
            states.mass[:, pages] = 0.0

    def _empty(self, q: torch.Tensor) -> dict[int, torch.Tensor]:
        """Scores over no pages at all: every sequence is shorter than one page."""
        g = self.geometry
        return {
            i: q.new_zeros(
                (*q.shape[:-2], g.kv_heads, 0, *([g.group] if self._per_head(i) else [])), dtype=self.dtype
            )
            for i in self.scores
        }

    def _per_head(self, score: int) -> bool:
        return "head" in self.program.index.nodes[score].type.names


def merge_left_out(
    out: torch.Tensor,
    lse: torch.Tensor,
    selected: PageList,
    value: Field,
    view: BatchView,
    dtype: torch.dtype,
) -> torch.Tensor:
    """See `CompiledFlow.merge_residual`; `value`: the state of the pages' values."""
    assert selected.left_out is not None
    batch, q_heads, pages = selected.left_out.shape
    table = view.block_table[:, :pages].long()
    heads = value.data.shape[0]
    # Which logical pages are listed: marked by their physical pages, which a row has once.
    marked = torch.zeros(batch, selected.heads, value.data.shape[1] + 1, dtype=torch.bool, device=out.device)
    column = torch.arange(selected.columns, device=out.device)
    ids = torch.where(column < selected.counts.unsqueeze(-1), selected.page_ids.long(), value.data.shape[1])
    marked.scatter_(-1, ids, True)
    listed = marked.gather(-1, table.unsqueeze(1).expand(-1, selected.heads, -1))
    complete = (view.lengths // selected.page_size).view(-1, 1, 1)
    left = ~listed & (torch.arange(pages, device=out.device) < complete)
    mass = selected.left_out.to(dtype)
    mass = torch.where(torch.isnan(mass), -torch.inf, mass.clamp(max=LARGEST))
    mass = mass.masked_fill(~left.repeat_interleave(q_heads // selected.heads, 1), -torch.inf)
    values = value.rows(_entries(table, heads, value.data.shape[1]), dtype)  # [batch, kv_head, page, dim]
    idle = (view.lengths == 0).view(-1, 1)
    own = torch.where(idle, 0.0, lse.to(dtype))
    top = torch.maximum(own, mass.amax(-1)) if pages else own
    weight, mine = torch.exp(mass - top.unsqueeze(-1)), torch.exp(own - top)
    added = (weight.unflatten(1, (heads, -1)) @ values).flatten(1, 2)
    total = mine + weight.sum(-1)
    merged = (mine.unsqueeze(-1) * out.to(dtype) + added) / total.unsqueeze(-1)
    return merged.to(out.dtype)


def _entries(table: torch.Tensor, heads: int, pages: int) -> torch.Tensor:
    """Where the pages of a table lie in a store, int64 `[batch, kv_head, page]`; see `Field.rows`."""
    return torch.arange(heads, device=table.device)[:, None] * pages + table.long().unsqueeze(-2)


def value_rows(kv: LayerKV, pages: torch.Tensor, geometry: Geometry, dtype: torch.dtype) -> torch.Tensor:
    """`page.v` of some pages, `[kv_head, n, token, dim]`; MLA: padded with zeros to the width of a key."""
    v = kv.v[:, pages].to(dtype)
    missing = geometry.head_dim - v.shape[-1]
    return torch.nn.functional.pad(v, (0, missing)) if missing else v


class TorchBackend:
    """Computes a whole batch at once with torch operators in fp32; the default on a CPU."""

    name = "torch"
    captures = False

    def unfit(self, device: torch.device) -> str | None:
        """It copies pages about and asks the host for lengths: for CPUs."""
        return None if device.type == "cpu" else "it runs on the CPU"

    def compile(self, program: Program, knobs: Knobs, geometry: Geometry) -> TorchFlow:
        """Raises `VF013` / `VF064` where the program does not fit the model."""
        return TorchFlow(program.canonical(), knobs, geometry)
