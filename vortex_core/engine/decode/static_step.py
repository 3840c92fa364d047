"""One decode step over buffers that never move: what a CUDA graph captures.

Everything here is a launch on device data. Lengths, page tables and tokens are read from the buffers, so the same
launches serve every later step; a row with length 0 is padding and touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from vortex_core.compiler.interface import BatchView, LayerKV
from vortex_core.engine.decode.selection import LoadedFlow
from vortex_core.engine.decode.step_kernels import begin_step
from vortex_core.engine.fused.kernels import keep_lists
from vortex_core.engine.kv.blocks import BLOCK_TOKENS
from vortex_core.engine.kv.pool import KVPool
from vortex_core.ir.crossover import EVERYTHING
from vortex_core.kernels.write.paged import write_kv
from vortex_core.page_list import PageList, one_list_a_sequence
from vortex_core.runtime.budgets import BudgetTable
from vortex_core.runtime.flow_step import Attention, FlowStep

COUNTS_STEP = 4  # int32 in 16 bytes
Observer = Callable[[int, torch.Tensor], None]


class StaticBuffers:
    """Inputs and outputs of decode steps for up to `rows` sequences of up to `blocks` blocks.

    Attributes:
        tokens: int64 `[rows]`, fed at the next step; a greedy step writes the next ones here.
        lengths: int32 `[rows]`, tokens with keys and values in the pool; a step begins by adding `active`.
        active: int32 `[rows]`, 1 for sequences, 0 for padding.
        ages: int32 `[rows]`, steps done.
        seats: int32 `[rows]`, where each keeps states of its own.
        blocks: int32 `[rows, blocks]`, physical blocks of 128 tokens.
        pages: the same in the flow's pages.
        logits: float32 `[rows, vocab]` of the last step.
        logprobs: float32 `[rows]` of the tokens a greedy step chose.
        attended: int64 `[rows, heads]`, tokens listed so far, over sparse layers.
    """

    def __init__(
        self, rows: int, blocks: int, page_size: int, heads: int, vocab: int, device: torch.device
    ) -> None:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.rows, self.width = rows, blocks
        self.per_block = BLOCK_TOKENS // page_size
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.lengths, self.active, self.ages, self.seats = ints(rows), ints(rows), ints(rows), ints(rows)
        self.blocks = ints(rows, blocks)
        self.pages = self.blocks if self.per_block == 1 else ints(rows, blocks * self.per_block)
        self.logits = torch.zeros(rows, vocab, device=device)
        self.logprobs = torch.zeros(rows, device=device)
        self.attended = torch.zeros(rows, heads, dtype=torch.int64, device=device)

    def state(self) -> list[torch.Tensor]:
        """What a step changes besides the pool."""
        return [
            self.tokens, self.lengths, self.active, self.ages, self.logits, self.logprobs, self.attended,
        ]  # fmt: skip


class StaticStep(FlowStep):
    """A step of the first `rows` rows with tables `blocks` wide. See `attention_hook.Step` for `attend`.

    Args:
        dense, sparse: attention over all blocks of a sequence, and over the flow's lists.
        selects: whether rows whose decode steps are a multiple of `reuse_steps` select anew; without, all keep their
            lists.
        kept: lists carried from step to step, by leader; empty where every step selects.
        observer: called with layer and queries before attention, with the new K and V in place.
        whole_below: sequences of fewer tokens attend to everything.
    """

    def __init__(
        self,
        buffers: StaticBuffers,
        pool: KVPool,
        flow: LoadedFlow | None,
        budgets: BudgetTable | None,
        attention: tuple[Attention, Attention],
        rows: int,
        blocks: int,
        *,
        selects: bool = True,
        kept: Mapping[int, PageList] | None = None,
        observer: Observer | None = None,
        whole_below: int = 0,
    ) -> None:
        super().__init__(flow, *attention)
        self.whole_below = whole_below
        self.pool, self.budgets, self.buffers = pool, budgets, buffers
        self.rows, self.selects, self.kept, self.observer = rows, selects, kept or {}, observer
        self.page_size = BLOCK_TOKENS if flow is None else flow.page_size
        self.lengths, self.ages = buffers.lengths[:rows], buffers.ages[:rows]
        self.blocks = buffers.blocks[:rows, :blocks]
        self.pages = buffers.pages[:rows, : blocks * buffers.per_block]
        self.max_length = blocks * BLOCK_TOKENS
        self.attended = buffers.attended[:rows]
        self.counts = self._counts()
        self._begin()

    def _begin(self) -> None:
        """Make room for the tokens being decoded."""
        # Rows that keep their lists select nothing: to the indexer they are empty.
        self.slots, positions, self.selecting = begin_step(
            self.lengths, self.buffers.active[: self.rows], self.ages, self.blocks,
            period=1 if self.flow is None else self.flow.knobs.reuse_steps, block_tokens=BLOCK_TOKENS,
        )  # fmt: skip
        self.positions = positions[:, None]
        self._budgets: dict[int, torch.Tensor] = {}

    def _counts(self) -> torch.Tensor | None:
        """Where each leader's token counts go, `[leader, rows * heads or a few more]`, to be added up once a step.

        Rows begin at multiples of 16 bytes: Triton compiles a kernel anew for a pointer that does not.
        None where they must be added layer by layer: lists that are kept from step to step.
        """
        flow = self.flow
        if flow is None or self.kept or not flow.plan.leaders:
            return None
        width = -(-self.attended.numel() // COUNTS_STEP) * COUNTS_STEP
        return torch.zeros(len(flow.plan.leaders), width, dtype=torch.int32, device=self.attended.device)

    def finish(self) -> None:
        """Count what the step attended."""
        if self.counts is None:
            return
        assert self.flow is not None
        sizes = [len(self.flow.plan.groups[at]) for at in self.flow.plan.leaders]
        size = max(sizes)
        listed = self.counts[:, : self.attended.numel()]
        total = listed.sum(0, dtype=torch.int64)
        if size > 1:
            total *= size
        for counts, smaller in zip(listed, sizes, strict=True):  # the last, or before a dense layer
            if smaller < size:
                total -= counts * (size - smaller)
        self.attended.add_(total.view_as(self.attended))

    # ---- the batch, in the buffers

    def batch(self) -> BatchView:
        """See `FlowStep`."""
        seats = self.buffers.seats[: self.rows]
        return BatchView(self.pages, self.lengths, self.lengths, self.max_length, seats=seats)

    def scored(self, budget_row: int) -> BatchView:
        """See `FlowStep`."""
        assert self.budgets is not None
        if budget_row not in self._budgets:
            found = self.budgets.table[budget_row].index_select(0, self.lengths)
            if self.whole_below:
                found = found.masked_fill(self.lengths < self.whole_below, EVERYTHING)
            self._budgets[budget_row] = found
        return BatchView(
            self.pages, self.selecting, self._budgets[budget_row], self.max_length, self.whole_below,
            seats=self.buffers.seats[: self.rows],
        )  # fmt: skip

    def all_pages(self) -> PageList:
        """See `FlowStep`."""
        return one_list_a_sequence(self.blocks, self.lengths, BLOCK_TOKENS)

    def kv(self, layer: int, page_size: int) -> LayerKV:
        """See `FlowStep`."""
        return self.pool.paged(layer, page_size)

    # ---- a layer

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store the new token, update states, select, attend."""
        keys, values = self.kv(layer, BLOCK_TOKENS).by_page
        latent = self.pool.geometry.is_mla
        write_kv(k[:, :, 0], None if latent else v[:, :, 0], keys, None if latent else values, self.slots)
        return self.attend_stored(layer, q, scale)

    def target(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the new tokens' keys and values belong, for those who store them and call `attend_stored`.

        `[kv_head, slot, dim]` of each (of the latent twice), and int64 slots `[batch]`, -1 for padding.
        """
        return *self.pool.layer(layer), self.slots

    def attend_stored(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """`attend` for keys and values that are in the pool already."""
        q = q[:, :, 0]
        if self.observer is not None:
            self.observer(layer, q)
        return self.attend_pages(layer, q, scale)[:, None]

    def records_mass(self, layer: int) -> bool:
        """See `FlowStep`; where no row selects, nobody reads it."""
        return self.selects and super().records_mass(layer)

    def pages_of(self, layer: int, leader: int, q: torch.Tensor) -> PageList:
        """See `FlowStep`; counts what is attended."""
        pages = super().pages_of(layer, leader, q)
        if self.counts is None:
            self.attended.add_(pages.lengths)
        return pages

    def select(self, layer: int, q: torch.Tensor, lengths: torch.Tensor | None = None) -> PageList:
        """See `FlowStep`; rows that are not due keep their lists."""
        assert self.flow is not None
        if self.counts is not None:
            lengths = self.counts[self.flow.plan.leaders.index(layer), : self.attended.numel()]
        new = super().select(layer, q, lengths) if self.selects else None
        if not self.kept:
            assert new is not None
            return new
        lists = self.kept[layer].rows(slice(self.rows))
        keep_lists(lists, new, self.pages, self.lengths, self.ages, period=self.flow.knobs.reuse_steps)
        return lists
