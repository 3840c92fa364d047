"""One flow on a serving engine's KV pool: what prefill completes is noted, and decode steps run on its batches.

Pages that prefill completes are noted and their states computed before the next step; pages that decode completes are
computed in the step itself (see `runtime.pool_flow`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from vortex_core.compiler import backends
from vortex_core.compiler.interface import BatchView, CompiledFlow, LayerKV, StateStore
from vortex_core.geometry import Geometry
from vortex_core.ir.crossover import NEVER, Crossover
from vortex_core.ir.flow import Flow
from vortex_core.kernels import write_latent
from vortex_core.kernels.decode.plan import AttentionPlan
from vortex_core.page_list import PageList, one_list_a_sequence
from vortex_core.runtime.budgets import BudgetTable
from vortex_core.runtime.eager_flow import EagerFlow
from vortex_core.runtime.flow_step import Attention, FlowStep
from vortex_core.runtime.pool_flow import PoolFlow
from vortex_core.runtime.torch_attention import TorchAttention
from vortex_core.serving.plan import check_servable
from vortex_core.serving.step_view import StepView


@dataclass(frozen=True)
class PoolShape:
    """What a decoder must know of a pool before its tensors exist.

    Attributes:
        pages: physical pages, of the flow's size.
        layers: first layer of this process and the one after its last.
        kv_dtype: storage of K and V.
        batch: the most sequences of a step.
        longest: the most tokens of a sequence.
    """

    pages: int
    layers: tuple[int, int]
    kv_dtype: torch.dtype
    batch: int
    longest: int


def compile_flow(bundle: Flow, geometry: Geometry, backend: str) -> CompiledFlow:
    """Compile for a model; raises what the backend finds."""
    return backends.get(backend).compile(bundle.program, bundle.knobs, geometry)


def state_bytes_per_page(compiled: CompiledFlow) -> int:
    """Bytes of one page's states in one layer, all kv heads; nothing is allocated."""
    return compiled.new_states(1, torch.device("meta")).bytes_per_page()


def batch_bucket(batch: int, largest: int) -> int:
    """The size to which a batch outside a graph is padded: few sizes, so that few workspaces exist."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, largest + 128, 128)]
    return min(largest, next(size for size in sizes if size >= batch))


class FlowDecoder:
    """Runs a flow at decode, for one rank of a serving engine.

    Args:
        bundle: the flow.
        geometry: the model as this rank sees it.
        pool: shape of the KV pool.
        layer: keys and values of a layer, `[slot, kv_head, dim]`; asked for once per layer.
        backend: `triton` or `torch`.
        crossover: below how many tokens sequences attend to everything.
    """

    def __init__(
        self,
        bundle: Flow,
        geometry: Geometry,
        pool: PoolShape,
        layer: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        device: torch.device,
        backend: str,
        crossover: Crossover = NEVER,
    ) -> None:
        check_servable(bundle.program, bundle.knobs)
        self.bundle, self.geometry, self.pool, self.device = bundle, geometry, pool, device
        self.page_size = bundle.knobs.page_size
        self.captures = backends.get(backend).captures
        compiled = compile_flow(bundle, geometry, backend)
        layers = range(*pool.layers)
        self.kv = {i: self._paged(*layer(i)) for i in layers}
        self.flow = PoolFlow(
            compiled if self.captures else EagerFlow(compiled),
            self.kv.__getitem__,
            pool.pages,
            device,
            layers,
            crossover,
        )
        self.view = StepView(pool.batch, pool.longest, self.page_size, self._allowance(), device)
        self.count = 0
        self._whole_tokens: int | None = None  # tokens of a step that attended to everything elsewhere
        # Steps by rows; the lists of a captured one are rewritten at its replays.
        self._steps: dict[int, _Step] = {}
        self._pending: list[torch.Tensor] = []
        self._attention = self._plans()

    @property
    def states(self) -> dict[int, StateStore]:
        """Page states by layer."""
        return self.flow.states

    def _allowance(self) -> torch.Tensor:
        """Budgets by row and length; of one row where this rank has no layer that selects."""
        if not self.flow.states:
            return torch.zeros(1, self.pool.longest + 1, dtype=torch.int32, device=self.device)
        budgets = BudgetTable(self.flow.plan, self.pool.longest, self.device)
        budgets.cover(0, self.pool.longest)
        return budgets.table

    def _plans(self) -> tuple[Attention, Attention]:
        """Attention over all pages, and over the flow's lists."""
        if not self.captures:
            plan = TorchAttention(self.geometry)
            return plan, plan
        shape = self.geometry, self.page_size, self.pool.kv_dtype, self.pool.batch, self.device
        dense = AttentionPlan.allocate(*shape)
        each = self.bundle.program.per_query_head
        sparse = AttentionPlan.allocate(*shape, per_query_head=True) if each else dense
        return dense, sparse.sharing(self.page_size, even=True).holding(self.flow.crossover.longest)

    def _paged(self, k: torch.Tensor, v: torch.Tensor) -> LayerKV:
        """`[slot, kv_head, dim]` as pages of the flow's size; a last slot run shorter than a page is left out."""
        pages = min(self.pool.pages, len(k) // self.page_size)
        assert pages == self.pool.pages, (pages, self.pool.pages)
        cut = (x[: pages * self.page_size].unflatten(0, (pages, self.page_size)) for x in (k, v))
        return LayerKV(*(x.permute(2, 0, 1, 3) for x in cut))

    @property
    def state_bytes(self) -> int:
        """Bytes of all page states."""
        return self.flow.state_bytes

    # ---- prefill -------------------------------------------------------------------------------------------

    def note_complete(self, pages: torch.Tensor) -> None:
        """Physical pages (any integer dtype, on the device) that the coming prefill step completes."""
        if len(pages) and self.states:
            self._pending.append(pages)

    def settle(self) -> None:
        """Compute the states of the noted pages. Call before every step: what prefill wrote is there by then."""
        if not self._pending:
            return
        pages = torch.cat(self._pending)
        self._pending.clear()
        self.flow.complete(pages)

    # ---- decode --------------------------------------------------------------------------------------------

    def begin(
        self, slots: torch.Tensor, requests: torch.Tensor, lengths: torch.Tensor, *, padded: int | None = None
    ) -> None:
        """Read the batch of a decode step (see `StepView.fill`) and settle what prefill left.

        Args:
            padded: rows of the step where it is padded; the rows past the batch are sequences of one token.
        """
        self.settle()
        self._whole_tokens = None
        self.count = len(requests)
        rows = max(self.count, padded or 0)
        self.view.fill(slots, requests, lengths, self.flow.crossover.tokens(rows))
        if padded is not None and padded > self.count:
            self.view.pad(self.count, padded)
            self.count = padded

    def all_below(self, rows: int, lengths: Sequence[int]) -> bool:
        """Whether all sequences of a step padded to `rows` are shorter than the flow's crossover."""
        below = self.flow.crossover.tokens(rows)
        return all(length < below for length in lengths)

    def pass_by(self, lengths: Sequence[int], slots: torch.Tensor) -> None:
        """A decode step that attends to everything elsewhere, with another backend: note what it completes.

        Args:
            lengths: as of `begin`, on the host.
            slots: where the new tokens' keys and values go, `[n]` or more.
        """
        self._whole_tokens = sum(lengths)
        done = [row for row, length in enumerate(lengths) if length % self.page_size == 0]
        if done:
            at = torch.tensor(done, device=slots.device)
            self.note_complete(torch.div(slots[at], self.page_size, rounding_mode="floor"))

    def prepare(self, batch: int) -> None:
        """Allocate what a step of `batch` sequences needs, before it is captured."""
        if self.states:
            longest = self.flow.crossover.longest
            self.flow.captured.prepare(batch, self.view.width, self.device, longest)

    @property
    def writes_latent(self) -> bool:
        """Whether `write_latent` is there: MLA on a GPU."""
        return self.geometry.is_mla and self.captures

    def write_latent(
        self,
        layer: int,
        slots: torch.Tensor,
        latent: torch.Tensor,
        rope: torch.Tensor,
        q_latent: torch.Tensor,
        q_rope: torch.Tensor,
    ) -> torch.Tensor:
        """Store a layer's latent rows of the step's tokens, and put their queries together: one launch for both.

        Args: as of `kernels.write_latent`, without the cache.

        Returns:
            `[batch, q_head, dim]`.
        """
        return write_latent(latent, rope, self.kv[layer].k[0], slots, q_latent, q_rope)

    def attend(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """One layer of the step. The layer's K and V of the new tokens are in the pool.

        Args:
            q: `[batch, q_head, dim]`, rotated (MLA: absorbed).

        Returns:
            `[batch, q_head, value_dim]`.
        """
        rows = len(q)
        if rows not in self._steps:
            self._steps[rows] = _Step(self, rows)
        return self._steps[rows].attend_pages(layer, q, scale)

    def lists(self, batch: int) -> dict[int, PageList]:
        """Newest selections of steps of `batch` rows, by the layer that selected."""
        return self._steps[batch].lists if batch in self._steps else {}

    # ---- proof of what ran ---------------------------------------------------------------------------------

    def attended(self) -> torch.Tensor | None:
        """Float64 `[2]` on the device: tokens that kv heads read by the newest selection, and tokens there are, summed
        over them and the sequences longer than one token. None where nothing has selected."""
        if self._whole_tokens is not None:
            return torch.full((2,), float(self._whole_tokens * self.geometry.kv_heads), dtype=torch.float64)
        found = self.lists(self.count)
        if not found:
            return None
        newest = found[max(found)]
        read = newest.read_by(self.geometry.kv_heads)
        lengths = self.view.lengths[: len(read), None].expand_as(read)
        real = (lengths > 1).double()
        # Every list ends with the sequence's last page, which may be partial.
        missing = (-lengths) % newest.page_size
        return torch.stack([((read * newest.page_size - missing) * real).sum(), (lengths * real).sum()])


class _Step(FlowStep):
    """A step of the first `rows` sequences of the decoder's view."""

    def __init__(self, decoder: FlowDecoder, rows: int) -> None:
        super().__init__(decoder.flow, *decoder._attention)
        self._pool, self._budgets = decoder.kv, decoder.view.budgets[:, :rows]
        self._table, self._lengths = decoder.view.table[:rows], decoder.view.lengths[:rows]
        self._longest = decoder.view.width * decoder.page_size
        self._longest_whole = decoder.flow.crossover.longest
        self._all = one_list_a_sequence(self._table, self._lengths, decoder.page_size)

    def batch(self) -> BatchView:
        """See `FlowStep`."""
        return BatchView(self._table, self._lengths, self._lengths, self._longest)

    def scored(self, budget_row: int) -> BatchView:
        """See `FlowStep`; every sequence selects at every step."""
        budgets = self._budgets[budget_row]
        return BatchView(self._table, self._lengths, budgets, self._longest, self._longest_whole)

    def all_pages(self) -> PageList:
        """See `FlowStep`."""
        return self._all

    def kv(self, layer: int, page_size: int) -> LayerKV:
        """See `FlowStep`; the pool is cut into pages of the flow's size."""
        return self._pool[layer]
