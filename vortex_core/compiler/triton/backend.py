"""The Triton backend behind the common interface: launches generated kernels, then selection.

All buffers belong to a workspace sized once for a batch and a number of pages; a step launches kernels on device
lengths and budgets only, so it can be captured in a CUDA graph and replayed for other lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton.language as tl

from vortex_core.compiler.evaluate import check_shapes, param_values
from vortex_core.compiler.interface import BatchView, LayerKV, StateStore
from vortex_core.compiler.rotary import with_rotary
from vortex_core.compiler.states import TorchStates
from vortex_core.compiler.triton.cache import load_module
from vortex_core.compiler.triton.generate import Module, generate
from vortex_core.compiler.triton.launch_config import Configs, ScoreConfig, default_configs
from vortex_core.compiler.triton.row_kernel import ROW_BLOCK, ROW_WARPS, row_cut
from vortex_core.compiler.triton.tile import FEW_CHANNELS, MANY_CHANNELS
from vortex_core.compiler.triton.tuning.results import stored_configs
from vortex_core.geometry import Geometry
from vortex_core.ir.definitions import torch_dtype
from vortex_core.ir.knobs import Knobs
from vortex_core.ir.layers import LayerPlan
from vortex_core.ir.program import Program
from vortex_core.kernels.decode.config import DecodeConfig
from vortex_core.kernels.decode.residual import merge_residual
from vortex_core.kernels.runtime import INTERPRETED, dependent_launch, multiprocessors
from vortex_core.kernels.select.api import (
    Limit,
    Marks,
    SelectWorkspace,
    Stage,
    select_pages,
    select_workspace,
)
from vortex_core.page_list import PageList, one_list_a_head

WARPS = 4
# Numbers of pages that kernels get as arguments are multiples of it: Triton compiles a kernel anew where a number is
# divisible by 16 and the one before was not.
PAGES_STEP = 16
# A scoring program of two blocks loads the second while it computes the first (two stages); measured on an H100 to
# pay where a multiprocessor gets many programs, and not where the launch is short anyway.
LONG_BLOCKS = 2
LONG_PROGRAMS = 7
TOKEN_BLOCKS = 8
TOKEN_PROGRAMS = 8
# With more than two heads a program prepares a query for each two of them, which takes so many blocks of pages' time; then
# programs are longer, as long as a multiprocessor gets so many warps.
PREPARED = 0.65
TOKEN_WARPS = 16
# Registers hold so many warps of a multiprocessor whose threads take whole rows of what lies by columns.
COLUMN_WARPS = 8
TOKEN_STAGES = 3
# What lies by columns goes from memory to registers, and enough programs are resident to hide the way.
COLUMN_STAGES = 1
# Up to so many programs a multiprocessor, matrix products take many channels.
SHORT_PROGRAMS = 4


@dataclass(frozen=True)
class Candidates:
    """The candidates of each row, between the two stages of a selection.

    Attributes:
        pages: int32 `[rows, capacity]`, logical pages.
        lens: int32 `[rows]`, their tokens.
        logical: int32 `[1, width]`, the page table of a sequence whose pages lie in their order.
        search: scratch of their selection.
    """

    pages: torch.Tensor
    lens: torch.Tensor
    logical: torch.Tensor
    search: SelectWorkspace

    @property
    def nbytes(self) -> int:
        """Bytes of scratch held."""
        return self.search.nbytes + sum(t.nbytes for t in (self.pages, self.lens, self.logical))


@dataclass
class Workspace:
    """Buffers of one decode step for up to `batch` sequences of up to `width` pages; contents are scratch.

    Attributes:
        scratch: fp32 `[rows * width * elements]` by scratch value.
        before: fp32 `[rows * elements]` by value of the query alone.
        scores: fp32 `[rows, width]` by score node.
        page_ids: int32 `[rows, capacity]`, the selection; absent where a program selects everything.
        kv_lens: int32 `[rows]`.
        candidates: of a selection in two stages, absent without one.
        marks: uint8 `[rows, width]`, pages of a union's streams so far; absent without a union.
        search: scratch of the selection kernel for rows too long for one program.
    """

    batch: int
    width: int
    capacity: int
    search: SelectWorkspace
    scratch: dict[int, torch.Tensor] = field(default_factory=dict)
    before: dict[int, torch.Tensor] = field(default_factory=dict)
    scores: dict[int, torch.Tensor] = field(default_factory=dict)
    page_ids: torch.Tensor | None = None
    kv_lens: torch.Tensor | None = None
    marks: torch.Tensor | None = None
    candidates: Candidates | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of scratch held."""
        held = [
            *self.scratch.values(),
            *self.before.values(),
            *self.scores.values(),
            self.page_ids,
            self.kv_lens,
            self.marks,
        ]
        more = 0 if self.candidates is None else self.candidates.nbytes
        return self.search.nbytes + more + sum(t.nbytes for t in held if t is not None)


class TritonFlow:
    """One program as generated kernels.

    Args:
        configs: how launches are cut, by shape.
    """

    def __init__(
        self, program: Program, knobs: Knobs, geometry: Geometry, configs: Configs = default_configs
    ) -> None:
        check_shapes(program, geometry, knobs.page_size)
        self.program, self.knobs, self.geometry = program, knobs, geometry
        self._bound = with_rotary(program, geometry)
        sizes = geometry.symbols(knobs.page_size)
        self.shapes = {s.name: tuple(e.resolve(sizes) for _, e in s.dims) for s in program.states}
        self.code: Module = generate(program, geometry, knobs.page_size)
        self._kernels = load_module(self.code.text)
        self._configs = configs
        self._variants: dict[tuple[int, int, int, int, bool], Any] = {}
        self._graph = self.code.graph
        self._streams = self._graph.streams
        self._heads = geometry.kv_heads * (geometry.group if program.per_query_head else 1)
        self._workspaces: dict[tuple[int, int, str, int], Workspace] = {}
        self._capacities: dict[int, int] = {}
        self._params: dict[torch.device, list[torch.Tensor]] = {}

    # ---- states --------------------------------------------------------------------------------------------

    def new_states(self, pages: int, device: torch.device, seats: int = 1) -> TorchStates:
        """States of one layer for `pages` physical pages and `seats` requests, or a few more."""
        g, seats = self.geometry, _in_steps(seats) if self.program.request_states else seats
        return TorchStates(self.program, self.shapes, g.kv_heads, g.group, _in_steps(pages), device, seats)

    def update(self, states: StateStore, kv: LayerKV, pages: torch.Tensor, layer: int) -> None:
        """forward_cache for complete physical `pages` (any integer dtype), one launch."""
        if self.code.update and len(pages):
            self._update(states, kv, layer, len(pages), pages, pages, 0, pages, decode=False)

    def update_decode(self, states: StateStore, kv: LayerKV, view: BatchView, layer: int) -> None:
        """forward_cache for whichever sequences' newest token completed a page, decided on the device."""
        if self.code.update:
            table = view.block_table
            self._update(
                states, kv, layer, len(view.lengths), table, table, table.stride(0), view.lengths, decode=True
            )

    def _update(
        self,
        states: StateStore,
        kv: LayerKV,
        layer: int,
        items: int,
        pages: torch.Tensor,
        table: torch.Tensor,
        table_stride: int,
        lengths: torch.Tensor,
        *,
        decode: bool,
    ) -> None:
        assert isinstance(states, TorchStates)
        k, v = kv.k, kv.v
        assert k.stride(3) == 1 and v.stride(3) == 1, "channels must be contiguous"
        self._kernels.update_kernel[(items, self.geometry.kv_heads)](
            k, v, k.stride(0), k.stride(1), k.stride(2), v.stride(0), v.stride(1), v.stride(2),
            pages, table, table_stride, lengths, states.pages, *self._state_args(states),
            *self.params(k.device, layer), DECODE=decode, num_warps=self.code.update_warps,
            **dependent_launch(k.device),
        )  # fmt: skip

    def _state_args(self, states: TorchStates) -> list[torch.Tensor]:
        found = []
        for s in self.program.states:
            stored = states.fields[s.name]
            found.append(stored.data)
            if stored.scale is not None:
                found.append(stored.scale)
        return [*found, *([] if states.mass is None else [states.mass])]

    def params(self, device: torch.device, layer: int) -> list[torch.Tensor]:
        """Learned parameters of a layer, fp32 `[kv_head or 1, *dims]`; views, so their addresses do not change."""
        if device not in self._params:
            found = param_values(self._bound, device, torch.float32)
            self._params[device] = [found[f"param:{p.name}"].contiguous() for p in self._bound.params]
        return [x[layer if len(x) > 1 else 0] for x in self._params[device]]

    # ---- selection -----------------------------------------------------------------------------------------

    def capacity(self, width: int) -> int:
        """The most pages a budget allows for sequences of up to `width` pages, over all layers."""
        if width not in self._capacities:
            g, size = self.geometry, self.knobs.page_size
            varies = LayerPlan(self.program, self.knobs, g.layers).budget_varies
            layers = range(g.layers if varies else 1)
            probes = {
                min(width, p) * size for p in (*range(1, min(width, 64) + 1), *range(64, width + 64, 64))
            }
            self._capacities[width] = max(
                self.knobs.pages(n, layer, g.layers) for n in probes for layer in layers
            )
        return self._capacities[width]

    def list_capacity(self, width: int) -> int:
        """The most pages a list can hold: a union's streams each have the budget."""
        return min(width, self.capacity(width) * max(1, len(self._streams)))

    def _most_candidates(self, width: int) -> int:
        """The most candidates of a row of up to `width` pages, those always kept included."""
        refined, kept = self._graph.refinement, self.knobs.keep_first + self.knobs.keep_last
        assert refined is not None
        return min(width, kept + refined.candidates * max(0, self.capacity(width) - kept))

    def prepare(self, batch: int, width: int, device: torch.device, longest_whole: int = 0) -> None:
        """See `CapturedFlow`."""
        self.workspace(batch, width, device, longest_whole)

    def workspace(self, batch: int, width: int, device: torch.device, longest_whole: int = 0) -> Workspace:
        """The buffers for a batch and a number of pages; the same ones at every call, as a graph needs.

        Args:
            longest_whole: lists hold all pages of rows of so many tokens.
        """
        whole = min(width, -(-longest_whole // self.knobs.page_size))
        key = (batch, width, str(device), whole)
        if key not in self._workspaces:
            g = self.geometry
            rows = batch * g.kv_heads
            lists = batch * self._heads
            capacity = max(whole, self.list_capacity(width))
            search = select_workspace(lists, width, min(width, self.capacity(width)), device)
            made = Workspace(batch, width, capacity, search)
            for i, elements in self.code.scratch.items():
                made.scratch[i] = torch.empty(rows * width * elements, device=device)
            for i, elements in self.code.before.items():
                made.before[i] = torch.empty(rows * elements, device=device)
            for i in self.code.schedule.outputs:
                each = "head" in self._graph.nodes[i].type.names
                made.scores[i] = torch.empty(rows * (g.group if each else 1), width, device=device)
            if self._streams:
                made.page_ids = torch.zeros(lists, capacity, dtype=torch.int32, device=device)
                made.kv_lens = torch.zeros(lists, dtype=torch.int32, device=device)
            if len(self._streams) > 1:
                made.marks = torch.empty(lists, width, dtype=torch.uint8, device=device)
            if self._graph.refinement is not None:
                most = self._most_candidates(width)
                pages = torch.zeros(rows, _in_steps(most), dtype=torch.int32, device=device)
                made.candidates = Candidates(
                    pages,
                    torch.zeros(rows, dtype=torch.int32, device=device),
                    torch.arange(width, dtype=torch.int32, device=device).unsqueeze(0),
                    select_workspace(rows, width, most, device),
                )
            self._workspaces[key] = made
        return self._workspaces[key]

    def select(self, q: torch.Tensor, states: StateStore, view: BatchView, layer: int) -> PageList:
        """forward_indexer for one decode step. `q`: `[batch, q_head, dim]`. The list is the caller's to keep."""
        found = self.select_in_place(q, states, view, layer)
        left = None if found.left_out is None else found.left_out.clone()
        return PageList(found.page_ids.clone(), found.lengths.clone(), found.page_size, left)

    def select_in_place(
        self,
        q: torch.Tensor,
        states: StateStore,
        view: BatchView,
        layer: int,
        lengths: torch.Tensor | None = None,
    ) -> PageList:
        """See `CapturedFlow`."""
        assert isinstance(states, TorchStates)
        size = self.knobs.page_size
        width = max(1, -(-view.max_length // size))
        if _in_steps(width) <= view.block_table.shape[1]:  # kernels read as many columns as they are told
            width = _in_steps(width)
        table = view.block_table.to(torch.int32)
        tokens = view.lengths.to(torch.int32)
        budgets = view.budgets.to(torch.int32)
        work = self.workspace(len(q), width, q.device, view.longest_whole)
        seats = view.seats if self.program.request_states else None
        seats = None if seats is None else seats.to(torch.int32)
        self.launch_scores(q, states, table, tokens, budgets, work, layer, view.dense_mass, seats)
        found = self.launch_selection(table, tokens, budgets, work, lengths)
        if self._graph.residual is None:
            return found
        return replace(found, left_out=work.scores[self._graph.residual.mass].view(len(q), -1, width))

    def merge_residual(
        self, out: torch.Tensor, lse: torch.Tensor, selected: PageList, states: StateStore, view: BatchView
    ) -> torch.Tensor:
        """See `CompiledFlow`; one launch, in place."""
        assert isinstance(states, TorchStates) and self._graph.residual is not None
        assert selected.left_out is not None
        value = states.fields[self._graph.residual.state].data
        table, lengths = view.block_table.to(torch.int32), view.lengths.to(torch.int32)
        return merge_residual(out, lse, selected.left_out, value, selected, table, lengths)

    def launch_scores(
        self,
        q: torch.Tensor,
        states: TorchStates,
        table: torch.Tensor,
        lengths: torch.Tensor,
        budgets: torch.Tensor,
        work: Workspace,
        layer: int,
        dense_mass: torch.Tensor | None = None,
        seats: torch.Tensor | None = None,
    ) -> None:
        """The scoring launches: page-parallel, then one program a row where the program looks across pages or the
        request has states.

        Args:
            seats: int32 `[batch]`, see `BatchView`.
        """
        assert q.stride(2) == 1, "channels must be contiguous"
        masses: list[Any] = []
        if self.program.reads_dense_mass:
            assert dense_mass is not None and dense_mass.is_contiguous(), (
                "[batch, q_head, page] of a dense layer"
            )
            masses = [dense_mass, dense_mass.shape[-1]]
        own: list[Any] = []
        if self.program.request_states:
            if seats is None:
                assert len(q) <= states.seats, f"{len(q)} rows, states of {states.seats} requests"
                seats = torch.arange(len(q), dtype=torch.int32, device=q.device)
            own = [seats, states.seats]
        args = [
            q, q.stride(0), q.stride(1), table, table.stride(0), lengths, budgets, states.pages, work.width,
            *self._state_args(states), *own, *masses, *self.params(q.device, layer), *(work.scratch[i] for i in sorted(work.scratch)),
            *(work.before[i] for i in sorted(work.before)), *(work.scores[i] for i in self.code.schedule.outputs),
        ]  # fmt: skip
        rows = len(q) * self.geometry.kv_heads
        config, wide = self._configs(work.batch, work.width).score, is_wide(q)
        if self.code.before:
            self._kernels.query_kernel[(rows,)](*args, num_warps=WARPS, **dependent_launch(q.device))
        config = self.resolved(config, work.batch, work.width, q.device)
        kernels = self._variant(config, wide)
        if self.code.score:
            grid = (-(-work.width // (config.block * config.blocks)), rows)
            kernels.score_kernel[grid](
                *args, OPERAND=operand(q), BLOCKS=config.blocks, num_warps=config.warps, num_stages=config.stages,
                **dependent_launch(q.device),
            )  # fmt: skip
        if self.code.rows:
            kernels.row_kernel[(rows,)](*args, num_warps=config.row_warps, **dependent_launch(q.device))
        if work.candidates is not None:
            self._refine(args, q, lengths, budgets, work)

    def _refine(
        self,
        args: Sequence[Any],
        q: torch.Tensor,
        lengths: torch.Tensor,
        budgets: torch.Tensor,
        work: Workspace,
    ) -> None:
        """Candidates by the coarse score, and their fine scores."""
        refined, found, knobs = self._graph.refinement, work.candidates, self.knobs
        assert refined is not None and found is not None
        heads, most = self.geometry.kv_heads, self._most_candidates(work.width)
        select_pages(
            work.scores[refined.coarse], lengths, budgets, found.logical.expand(len(lengths), -1), heads=heads,
            page_size=knobs.page_size, page_ids=found.pages, kv_lens=found.lens, keep_first=knobs.keep_first,
            keep_last=knobs.keep_last, workspace=found.search, fraction=refined.fraction, most=most,
            times=refined.candidates,
        )  # fmt: skip
        kernel = self._variant(ScoreConfig(), is_wide(q)).refine_kernel
        kernel[(-(-most // self.code.candidates), len(found.lens))](
            *args, found.pages, found.pages.stride(0), found.lens,
            OPERAND=operand(q), num_warps=WARPS, **dependent_launch(lengths.device),
        )  # fmt: skip

    def resolved(self, config: ScoreConfig, batch: int, width: int, device: torch.device) -> ScoreConfig:
        """The configuration with what it leaves open filled in for a shape."""
        block = config.block or self.code.block
        programs = -(-width // block) * batch * self.geometry.kv_heads
        default = 1 if self.geometry.is_mla else score_blocks(programs, device)
        if self.code.tokens and not self.geometry.is_mla:
            warps = config.warps or self.code.warps
            default = token_blocks(programs, device, self.geometry.group, warps, columns=self.code.columns)
        stages = config.stages
        if self.code.tokens and stages == ScoreConfig.stages:
            stages = COLUMN_STAGES if self.code.columns else TOKEN_STAGES
        elif self.code.sub_pages and not config.blocks and stages == ScoreConfig.stages:
            # Tiles are large, and two of them in shared memory leave room for few programs.
            default, stages = 1, 1
        row_block, row_warps = (
            row_cut(self.code.row_lanes, width) if self.code.rows else (ROW_BLOCK, ROW_WARPS)
        )
        short = programs <= SHORT_PROGRAMS * multiprocessors(device)
        return replace(
            config, block=block, blocks=config.blocks or default, warps=config.warps or self.code.warps, stages=stages,
            channels=config.channels or (MANY_CHANNELS if short else FEW_CHANNELS),
            row_block=config.row_block or row_block, row_warps=config.row_warps or row_warps,
        )  # fmt: skip

    def _variant(self, config: ScoreConfig, wide: bool) -> Any:
        """The module of the kernels that score, cut otherwise than by default or for other queries."""
        default = self.code.block, FEW_CHANNELS, ROW_BLOCK, ROW_WARPS, False
        key = (
            config.block or self.code.block, config.channels or FEW_CHANNELS, config.row_block or ROW_BLOCK,
            config.row_warps or ROW_WARPS, wide,
        )  # fmt: skip
        if key not in self._variants:
            code = self.code
            if key != default:
                block, channels, row_block, row_warps, wide = key
                code = generate(
                    self.program, self.geometry, self.knobs.page_size, block, channels,
                    row_block=row_block, row_warps=row_warps, wide=wide,
                )  # fmt: skip
            self._variants[key] = load_module(code.text)
        return self._variants[key]

    def attention_config(self, batch: int, width: int, kv_dtype: torch.dtype) -> DecodeConfig | None:
        """What was measured best for attention over this flow's lists; None: no more than the defaults."""
        name = self.knobs.kv_dtype
        same = kv_dtype == (torch.bfloat16 if name == "auto" else torch_dtype(torch, name))
        return self._configs(batch, width).attention if same else None

    def launch_selection(
        self,
        table: torch.Tensor,
        lengths: torch.Tensor,
        budgets: torch.Tensor,
        work: Workspace,
        lens: torch.Tensor | None = None,
    ) -> PageList:
        """Scores to page lists, one launch a stream; those of a union meet as marks on pages."""
        batch, knobs = len(lengths), self.knobs
        if not self._streams:
            heads = self.geometry.kv_heads
            ids = table[:, : work.width].unsqueeze(1).expand(-1, heads, -1)
            return PageList(ids, lengths.unsqueeze(1).expand(batch, heads), knobs.page_size)
        lens = work.kv_lens if lens is None else lens
        assert lens is not None and work.page_ids is not None
        for n, i in enumerate(self._streams):
            node = self._graph.nodes[i]
            limit = marks = None
            if node.op == "topp":
                limit = Limit("top-p", node.attr["p"])
            elif node.op == "threshold":
                limit = Limit("threshold", node.attr["at"])
            if work.marks is not None:
                stage: Stage = "list" if n == len(self._streams) - 1 else "add" if n else "begin"
                marks = Marks(work.marks, stage, min(work.width, self.capacity(work.width)))
            select_pages(
                self._pooled(work.scores[i if node.op == "refine" else node.inputs[0]], node.attr.get("share"), batch), lengths, budgets, table,
                heads=self._heads, page_size=knobs.page_size, page_ids=work.page_ids, kv_lens=lens,
                keep_first=knobs.keep_first, keep_last=knobs.keep_last, workspace=work.search,
                fraction=node.attr.get("fraction", 1.0), limit=limit, marks=marks,
                most=None if marks is not None else min(work.width, self.capacity(work.width)),
                tolerance=round(1.0 - node.attr.get("recall", 1.0), 6),
            )  # fmt: skip
        return one_list_a_head(work.page_ids, lens, self._heads, knobs.page_size)

    def _pooled(self, scores: torch.Tensor, share: str | None, batch: int) -> torch.Tensor:
        """Scores that all kv heads of a request share, where they do."""
        if share is None:
            return scores
        stacked = scores.view(batch, self._heads, -1)
        pooled = stacked.amax(1, keepdim=True) if share == "max" else stacked.mean(1, keepdim=True)
        return pooled.expand_as(stacked).reshape_as(scores)

    def observe(self, states: StateStore, selected: PageList, mass: torch.Tensor, layer: int) -> None:
        """Keep the attention mass of a step, `[batch, q_head, max_selected]`."""
        assert isinstance(states, TorchStates) and states.mass is not None
        g = self.geometry
        batch, _, longest = mass.shape
        ids = selected.page_ids[..., :longest].long()
        counts = selected.counts
        if selected.heads == g.kv_heads:
            ids = ids.repeat_interleave(g.group, 1)
            counts = counts.repeat_interleave(g.group, 1)
        real = torch.arange(longest, device=mass.device) < counts.unsqueeze(-1)
        head = torch.arange(mass.shape[1], device=mass.device).view(1, -1, 1)
        where = ((head // g.group) * states.pages + ids) * g.group + head % g.group
        flat = states.mass.view(-1)
        # Padding entries go to the row's own last page with its own value, so that no index is written twice.
        last = (counts - 1).clamp(min=0).unsqueeze(-1)
        where = torch.where(real, where, where.gather(-1, last.expand(batch, mass.shape[1], 1)))
        value = torch.where(real, mass, mass.gather(-1, last.expand(batch, mass.shape[1], 1)))
        flat.scatter_(0, where.flatten(), value.flatten().to(flat.dtype))


def _in_steps(pages: int) -> int:
    return max(1, -(-pages // PAGES_STEP)) * PAGES_STEP


def score_blocks(programs: int, device: torch.device) -> int:
    """Blocks of pages a scoring program takes, where one each would make `programs`."""
    return LONG_BLOCKS if programs >= LONG_PROGRAMS * multiprocessors(device) else 1


def operand(q: torch.Tensor) -> tl.dtype:
    """Type in which matrix products run: bf16 holds their operands exactly, a wide query in parts. The interpreter's
    bf16 product is wrong, so it computes in fp32."""
    return tl.float32 if INTERPRETED else tl.bfloat16


def is_wide(q: torch.Tensor) -> bool:
    """Whether bf16 does not hold a query, so that kernels are generated that take it in parts."""
    return q.dtype != torch.bfloat16 and not INTERPRETED


def token_blocks(programs: int, device: torch.device, heads: int, warps: int, *, columns: bool) -> int:
    """The same where rows lie inside pages: programs long enough that loads run ahead, and enough of them to share out
    evenly.

    Args:
        heads: that share keys.
        warps: of a program.
        columns: whether all such rows lie by columns.
    """
    count = multiprocessors(device)
    if heads <= 2:
        share = programs // (TOKEN_PROGRAMS * count)
        return max(1, min(TOKEN_BLOCKS, 1 << max(0, share.bit_length() - 1)))
    # Programs run in rounds of as many as registers hold, and a round that is not full takes as long as one that is. Where
    # loads run ahead it is not known how many are resident: the multiprocessor that gets the most programs ends last.
    resident, least = (COLUMN_WARPS, COLUMN_WARPS) if columns else (warps, TOKEN_WARPS)
    most = min(TOKEN_BLOCKS, programs * warps // (least * count))
    return min(
        range(1, max(1, most) + 1),
        key=lambda n: -(-programs * warps // (n * resident * count)) * (n + PREPARED),
    )


class TritonBackend:
    """Generated Triton kernels, launched as was measured best on this machine where `tune` has been run."""

    name = "triton"
    captures = True

    def unfit(self, device: torch.device) -> str | None:
        """It runs on GPUs, and for tests under Triton's interpreter."""
        return (
            "that needs TRITON_INTERPRET=1, and is for tests"
            if device.type == "cpu" and not INTERPRETED
            else None
        )

    def compile(self, program: Program, knobs: Knobs, geometry: Geometry) -> TritonFlow:
        """Raises `VE050` for what cannot be lowered, `VF013` / `VF064` where the program does not fit the model."""
        program = program.canonical()
        return TritonFlow(program, knobs, geometry, stored_configs(program, knobs, geometry))
